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
SKY = 1e3  # metres, for what has no depth
NUM_FRAMES = 4  # of the segment, for all models
VOXEL_SIZE, TEXT_DIM = 0.1, 384  # without a model: those of tiny


@dataclass(frozen=True)
class Hole:
    """A segment that is to be made, and what is true of it: the same for all who fill it."""

    condition: Condition  # B = 1
    truth: Walk  # of T frames
    hole: Tensor  # [T, H, W] bool
    observed: Walk  # the frames that the memory has seen
    kept: Tensor  # [W] bool: columns outside the wedge


@dataclass(frozen=True)
class Filling:
    """What a model, or none, made of a `Hole`."""

    image: Tensor  # [T, H, W, 3]
    depth: Tensor  # [T, H, W] metres
    psnr: float  # within the hole, dB
    delta: float  # share of the hole's pixels whose depth is right within 25 %
    delta_all: float  # the same of all pixels of the segment
    abs_rel: float  # within the hole


@torch.no_grad()
def make_hole(kind: str, walk: Walk, num_frames: int = NUM_FRAMES, voxel_size: float = VOXEL_SIZE) -> Hole:
    """What is known of the last frames of a walk, with a hole, without words; a wedge lies where the walk's name says.

    Args:
        kind: "wedge": the memory has seen every second frame before them, but nothing of a wedge of 110 degrees;
            "new room": it has seen the walk's first frame only.
        walk: on the CPU, with depth; at least 2 frames longer than the segment.
        num_frames: of the segment.
        voxel_size: metres, of the memory.

    Raises:
        ValueError: another kind, or a walk that is too short or without depth.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if len(walk) < num_frames + 2 or walk.depth is None:
        raise ValueError(f"{walk.name}: expected at least {num_frames + 2} frames with depth, got {len(walk)}")
    target = walk.select(range(len(walk) - num_frames, len(walk)))
    observed = walk.select(range(0, len(walk) - num_frames, 2) if kind == "wedge" else [0])
    camera = Panorama(walk.height, 2 * walk.height)
    memory = Memory(config=first_write_config(voxel_size))
    for image, depth, pose in zip(observed.image, observed.depth, observed.camera_to_world, strict=True):
        observe_first(memory, image, depth, pose, camera)
    condition = continuation(memory, target.camera_to_world, walk.height, words(None, ""))
    kept = torch.ones(camera.width, dtype=torch.bool)
    if kind == "wedge":
        first = Random(f"wedge {walk.name}").randrange(camera.width)
        kept[(first + torch.arange(round(camera.width * WEDGE / 360))) % camera.width] = False
    visibility = condition.visibility * kept.to(condition.visibility)
    return Hole(replace(condition, visibility=visibility), target, visibility[0] < SEEN, observed, kept)


@torch.no_grad()
def shown_to(hole: Hole, model: WorldModel | None) -> Hole:
    """The same hole as a model is given it: with words and the learned memory, or without what it was trained without.

    Args:
        hole: of `make_hole`.
        model: None: no network, which is given what the memory shows.
    """
    if model is None:
        return hole
    text, text_mask = words(model, hole.truth.captions[0])
    condition = replace(hole.condition.to(text.device), text=text, text_mask=text_mask)
    if model.memory_encoder is not None:
        condition = replace(condition, features=_features(model, hole))
    if not model.config.uses_memory:
        condition = condition.without_memory()
    return replace(hole, condition=condition)


@torch.no_grad()
def fill(hole: Hole, model: WorldModel | None, seed: int, **options) -> Filling:
    """What a model makes of a hole, and how far from the truth it is; None: without a network.

    Args:
        hole: of `make_hole`, as `shown_to` the model.
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
    found = [depth_metrics(d, s, area[0]).delta for d, s in zip(depth, truth.depth, strict=True) if bool((s > 0).any())]
    delta_all = sum(found) / len(found) if found else math.nan
    return Filling(image, depth, psnr=mean[0], abs_rel=mean[1], delta=mean[2], delta_all=delta_all)


def words(model: WorldModel | None, caption: str) -> tuple[Tensor, Tensor]:  # [1, S, E], [1, S]
    """A caption as a model's text encoder has it; no tokens without a model."""
    if model is None:
        return torch.zeros(1, 0, TEXT_DIM), torch.zeros(1, 0, dtype=torch.bool)
    return model.encode_text([caption])


def _features(model: WorldModel, hole: Hole) -> Tensor:  # [1, T, h, w, F]
    """What the learned memory shows; of what was observed, all that any of the frames sees in the wedge is left out."""
    observed, target = hole.observed, hole.truth
    origin = target.camera_to_world[0, :3, 3]
    poses, targets = observed.camera_to_world.clone(), target.camera_to_world.clone()
    poses[:, :3, 3] -= origin
    targets[:, :3, 3] -= origin
    camera = Panorama(observed.height, 2 * observed.height)
    origins, directions = camera.rays(poses)
    distance = torch.where(observed.depth > 0, observed.depth, SKY).flatten(1)
    points = origins + distance[..., None] * directions  # [S, H W, 3]
    known = torch.ones(points.shape[:2], dtype=torch.bool)
    for pose in targets:
        column = camera.project((points - pose[:3, 3]) @ pose[:3, :3])[..., 0].long() % camera.width
        known &= hole.kept[column]
    frames = encode_rgbd(observed.image, observed.depth)
    given = (x[None].to(model.device) for x in (frames, known.view(observed.depth.shape).float(), poses, targets))
    return model.memory_encoder(*given).features
