"""What a training sample is to be: which frames, what is remembered of them, what is known, how they are varied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from evoworld.data.walk import Walk, level_poses
from evoworld.geometry import Panorama

from .config import DataConfig

MODES = ("text", "panorama", "photo", "depth")  # how a world can start without a memory
STRIDES = (1, 1, 1, 2)  # frames of the walk from one of the segment to the next
WEDGE = (60.0, 180.0)  # degrees, of the memory's rendering removed
DISTANT = 0.3  # of the large holes are places seen from afar only
PREVIOUS = 0.25  # of segments with a memory are given their first frame too
FIELD_OF_VIEW = (45.0, 110.0)  # degrees across, of photos
ASPECT = (0.56, 1.34)  # height over width of photos
GAMMA, GAIN, TINT, SATURATION = 0.25, 0.12, 0.06, 0.3  # largest change of colours, of the value or its logarithm


@dataclass(frozen=True)
class SegmentPlan:
    """A training sample, before anything of it is made."""

    walk: int
    target: tuple[int, ...]  # frames that are to be generated
    observed: tuple[int, ...]  # frames that the memory is made of, in order
    mode: str  # of MODES, or "memory"
    wedge: tuple[int, int] | None  # first column and number of columns in which the memory shows nothing
    known_depth: bool  # whether the depth of a known first frame is known
    known_first: bool  # whether the first frame is known besides the memory
    photo: tuple[int, float, float] | None  # middle column, tangents of half the field of view across and down
    mirror: bool
    columns: int  # that all is rolled by
    colour: tuple[float, ...]  # gamma, gain of red, green and blue, saturation


def plan_segment(
    index: int, seed: int, lengths: Sequence[int], num_frames: int, width: int, config: DataConfig
) -> SegmentPlan:
    """The plan of sample `index`, a function of the arguments alone.

    Samples that follow one another are of the same walk, so that a run that is short makes few walks.

    Args:
        index: 0 to `config.segments` - 1.
        seed: of the run.
        lengths: frames of each walk.
        num_frames: T of a segment.
        width: W of the panoramas in pixels.
        config: the shares of modes and holes.

    Example:
        >>> plan = plan_segment(5, 0, lengths=[24, 24], num_frames=4, width=128, config=DataConfig(segments=10))
        >>> plan.walk, len(plan.target)
        (1, 4)
    """
    random = Random(f"segment {seed} {index}")
    each = max(1, config.segments // len(lengths))
    walk = index // each % len(lengths)
    order = list(range(lengths[walk]))
    if random.random() < 0.5:
        order.reverse()
    stride = random.choice([s for s in STRIDES if (num_frames - 1) * s < len(order)] or [0])
    last_start = len(order) - 1 - (num_frames - 1) * stride
    mode = random.choice(MODES) if random.random() < config.no_memory else "memory"
    hole = mode == "memory" and random.random() < config.holes
    distant = hole and random.random() < DISTANT
    wish = random.random()
    start = random.randint(last_start // 2 if distant else 0, last_start)
    target = [order[min(start + i * stride, len(order) - 1)] for i in range(num_frames)]
    observed: list[int] = []
    if mode == "memory":
        observed = _observed(random, order, start, target, distant, config.observed)
    wedge = None
    if hole and not distant:
        wedge = random.randrange(width), round(random.uniform(*WEDGE) / 360 * width)
    across = math.tan(math.radians(random.uniform(*FIELD_OF_VIEW)) / 2)
    photo = (random.randrange(width), across, across * random.uniform(*ASPECT)) if mode == "photo" else None
    tint = [GAIN * random.uniform(-1, 1)] * 3
    tint = [gain + TINT * random.uniform(-1, 1) for gain in tint]
    return SegmentPlan(
        walk=walk,
        target=tuple(target),
        observed=tuple(observed),
        mode=mode,
        wedge=wedge,
        known_depth=wish < 0.5 if mode == "panorama" else mode == "memory",
        known_first=mode == "panorama" or (mode == "memory" and wish < PREVIOUS),
        photo=photo,
        mirror=random.random() < 0.5,
        columns=random.randrange(width),
        colour=(
            math.exp(random.uniform(-GAMMA, GAMMA)),
            *(math.exp(gain) for gain in tint),
            math.exp(random.uniform(-SATURATION, SATURATION)),
        ),
    )


def vary(walk: Walk, plan: SegmentPlan) -> Walk:
    """The walk mirrored, turned and coloured as the plan says, from where its first frame would look along world x.

    What the frames show of one world before, they show of one world after: a mirrored, turned and coloured one.
    """
    image, depth = walk.image, walk.depth
    rotation, position = walk.camera_to_world[0, :3, :3], walk.camera_to_world[:, :3, 3]
    x, y, z = ((position - position[:1]) @ rotation).unbind(-1)  # in the camera's axes
    if plan.mirror:
        image, x = image.flip(-2), -x
        depth = None if depth is None else depth.flip(-1)
    turn = -2 * math.pi * plan.columns / image.shape[-2]  # of the axes: the image turns the other way
    x, z = math.cos(turn) * x - math.sin(turn) * z, math.sin(turn) * x + math.cos(turn) * z
    poses = level_poses(torch.zeros_like(position), 0.0)
    poses[:, :3, 3] = torch.stack((x, y, z), -1) @ poses[0, :3, :3].T + position[:1]
    gamma, *gain, saturation = plan.colour
    image = image.roll(plan.columns, -2).clamp(0, 1).pow(gamma) * image.new_tensor(gain)
    grey = image.mean(-1, keepdim=True)
    image = (grey + saturation * (image - grey)).clamp(0, 1)
    depth = None if depth is None else depth.roll(plan.columns, -1)
    return Walk(image, depth, poses, walk.captions, walk.name)


def known_mask(plan: SegmentPlan, camera: Panorama) -> Tensor:  # [T, H, W, 2] bool
    """Which colours and which depths are given from outside."""
    mask = torch.zeros(len(plan.target), camera.height, camera.width, 2, dtype=torch.bool)
    if plan.mode == "depth":
        mask[..., 0] = True
    elif plan.mode == "photo":
        mask[0, ..., 0] = _inside_photo(plan, camera)
    elif plan.known_first:
        mask[0, ..., 0] = True
        mask[0, ..., 1] = plan.known_depth
    return mask


def wedge_mask(plan: SegmentPlan, width: int) -> Tensor:  # [W] bool
    """The columns in which the memory's rendering is kept."""
    keep = torch.ones(width, dtype=torch.bool)
    if plan.wedge is not None:
        first, count = plan.wedge
        keep[(first + torch.arange(count)) % width] = False
    return keep


def _observed(random: Random, order: list[int], start: int, target: list[int], distant: bool, most: int) -> list[int]:
    """Frames for the memory: far ones; those before the segment; or any, now and then with the targets themselves."""
    count = random.randint(1, most)
    if distant:
        return order[: random.randint(1, 2)]
    if start > 0 and random.random() < 0.5:
        return order[max(0, start - count) : start]
    others = order if random.random() < 0.25 else [i for i in order if i not in target]
    return sorted(random.sample(others or order, min(count, len(others or order))))


def _inside_photo(plan: SegmentPlan, camera: Panorama) -> Tensor:  # [H, W] bool
    middle, across, down = plan.photo
    _, directions = camera.rays(torch.eye(4))
    x, y, z = directions.view(camera.height, camera.width, 3).roll(middle - camera.width // 2, 1).unbind(-1)
    return (z > 0) & (x.abs() < across * z) & (y.abs() < down * z)
