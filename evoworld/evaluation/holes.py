"""Large holes: a wedge that the memory never saw, and rooms beyond what it saw; against the true renderings."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor

from evoworld.data.walk import Walk
from evoworld.geometry import Panorama
from evoworld.world.condition import Condition
from evoworld.world.conditions import continuation
from evoworld.world.first_write import first_write_config, observe_first
from evoworld.world.memory import Memory
from evoworld.world.model import WorldModel
from evoworld.world.rgbd import decode_rgbd, encode_rgbd

from .metrics import depth_metrics, psnr

KINDS = ("wedge", "new room")
WEDGE = 110.0  # degrees
SEEN = 0.5  # visibility from which a pixel is no hole
VOXEL_SIZE, NUM_FRAMES, TEXT_DIM = 0.1, 4, 384  # without a model: those of tiny


@dataclass(frozen=True)
class Hole:
    """A segment that is to be made, and what is true of it."""

    condition: Condition  # B = 1
    truth: Walk  # of T frames
    hole: Tensor  # [T, H, W] bool


@dataclass(frozen=True)
class Filling:
    """What a model, or none, made of a `Hole`."""

    image: Tensor  # [T, H, W, 3]
    depth: Tensor  # [T, H, W] metres
    psnr: float  # within the hole, dB
    delta: float  # share of the hole's pixels whose depth is right within 25 %
    abs_rel: float  # within the hole


@torch.no_grad()
def make_hole(kind: str, walk: Walk, model: WorldModel | None, seed: int, num_frames: int | None = None) -> Hole:
    """What is known of the last frames of a walk, with a hole.

    Args:
        kind: "wedge": the memory has seen every second frame before them, but nothing of a wedge of 110 degrees;
            "new room": it has seen the walk's first frame only.
        walk: on the CPU, with depth; at least 2 frames longer than the segment.
        model: whose segments, words and learned memory it is for; None: those of no network.
        seed: of where the wedge lies.
        num_frames: of the segment; None: as many as the model's have.

    Raises:
        ValueError: another kind, or a walk that is too short or without depth.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    count = num_frames or (NUM_FRAMES if model is None else model.config.num_frames)
    if len(walk) < count + 2 or walk.depth is None:
        raise ValueError(f"{walk.name}: expected at least {count + 2} frames with depth, got {len(walk)}")
    target = walk.select(range(len(walk) - count, len(walk)))
    observed = walk.select(range(0, len(walk) - count, 2) if kind == "wedge" else [0])
    camera = Panorama(walk.height, 2 * walk.height)
    voxel_size = VOXEL_SIZE if model is None else model.config.voxel_size
    memory = Memory(config=first_write_config(voxel_size))
    for image, depth, pose in zip(observed.image, observed.depth, observed.camera_to_world, strict=True):
        observe_first(memory, image, depth, pose, camera)
    condition = continuation(memory, target.camera_to_world, walk.height, words(model, target.captions[0]))
    kept = torch.ones(camera.width, dtype=torch.bool)
    if kind == "wedge":
        first = Random(f"wedge {walk.name} {seed}").randrange(camera.width)
        kept[(first + torch.arange(round(camera.width * WEDGE / 360))) % camera.width] = False
    visibility = condition.visibility * kept.to(condition.visibility)
    features = None
    if model is not None and model.memory_encoder is not None:
        features = _features(model, observed, target, kept)
    condition = replace(condition, visibility=visibility, features=features)
    return Hole(condition, target, visibility[0].cpu() < SEEN)


@torch.no_grad()
def fill(hole: Hole, model: WorldModel | None, seed: int, **options) -> Filling:
    """What a model makes of a hole, and how far from the truth it is; None: without a network.

    Args:
        hole: of `make_hole` for the same model.
        model: the options are those of its `sample`.
        seed: of its noise.
    """
    generator = torch.Generator().manual_seed(seed)
    made = hole.condition.filled() if model is None else model.sample(hole.condition, generator=generator, **options)
    image, depth = decode_rgbd(made[0].float().cpu())
    truth, camera = hole.truth, Panorama(hole.truth.height, 2 * hole.truth.height)
    area = camera.solid_angle().expand(depth.shape)
    scores = [
        (psnr(i, t, w), *depth_metrics(d, s, w))
        for i, t, d, s, w in zip(image, truth.image, depth, truth.depth, area * hole.hole, strict=True)
        if w.sum() > 0 and bool(((s > 0) & (w > 0)).any())
    ]
    mean = [sum(column) / len(column) for column in zip(*scores)] if scores else [math.nan] * 3
    return Filling(image, depth, psnr=mean[0], abs_rel=mean[1], delta=mean[2])


def words(model: WorldModel | None, caption: str) -> tuple[Tensor, Tensor]:  # [1, S, E], [1, S]
    """A caption as a model's text encoder has it; no tokens without a model."""
    if model is None:
        return torch.zeros(1, 0, TEXT_DIM), torch.zeros(1, 0, dtype=torch.bool)
    return model.encode_text([caption])


def _features(model: WorldModel, observed: Walk, target: Walk, kept: Tensor) -> Tensor:  # [1, T, h, w, F]
    """What the learned memory shows of the same frames; of those observed, what lies in the wedge is left out."""
    origin = target.camera_to_world[0, :3, 3]
    camera = Panorama(observed.height, 2 * observed.height)
    origins, directions = camera.rays(observed.camera_to_world)
    distance = torch.where(observed.depth > 0, observed.depth, 1e3).flatten(1)
    points = origins + distance[..., None] * directions - origin
    column = camera.project(points @ target.camera_to_world[0, :3, :3])[..., 0].long() % camera.width
    poses, targets = observed.camera_to_world.clone(), target.camera_to_world.clone()
    poses[:, :3, 3] -= origin
    targets[:, :3, 3] -= origin
    known = kept[column].view(observed.depth.shape).float()
    frames = encode_rgbd(observed.image, observed.depth)
    given = (x[None].to(model.device) for x in (frames, known, poses, targets))
    return model.memory_encoder(*given).features
