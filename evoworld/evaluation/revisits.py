"""Walks through generated worlds that come back: whether what was there is there again."""

from __future__ import annotations

import copy
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from evoworld.data.walk import Walk
from evoworld.geometry import Panorama, interpolate_poses
from evoworld.world.evolve import World

from .metrics import depth_metrics, psnr

LOOK_EVERY = 4  # frames between two places that are looked at again
VISIBLE = 0.5
EQUAL = 60.0  # dB from which pictures count as equal: the rounding to 8 bits is at 59
SETTLED = 20  # first frames of a long walk, whose times are not looked at: memory and caches are new

MakeWorld = Callable[[], World]


@dataclass
class Lap:
    """What a closed walk came to; means over its frames, decibels and shares."""

    last_first: float  # PSNR of the last frame against the first, at the same pose
    revisit: float  # PSNR of views at poses between those of the walk: when first there, and after the lap
    truth: float  # PSNR against the true renderings, of all frames but the first and the last, whose truth was given
    delta: float  # share of the same frames' pixels with the right depth within 25 %
    delta_visible: float  # the same where `visible`
    seconds: float  # a frame
    images: list[Tensor] = field(default_factory=list)  # [H, W, 3] each
    visible: list[Tensor] = field(default_factory=list)  # [H, W] bool each: what the memory showed before


@dataclass
class LongWalk:
    """What a walk of several laps came to."""

    revisit: float  # PSNR, dB, as of `Lap`, after all laps
    slowdown: float  # time of the last quarter's frames over that of the first quarter's
    seconds: float  # a frame
    megabytes: float  # of the world file
    frames: int


def walk_lap(
    make_world: MakeWorld,
    walk: Walk,
    seed: int,
    look_every: int = LOOK_EVERY,
    visible: list[Tensor] | None = None,  # T of [H, W] bool
) -> Lap:
    """A closed walk from a panorama with depth, and views between its poses when first there and after the lap.

    Args:
        make_world: gives a `World` that nothing was started in.
        walk: true renderings of at least 3 frames; the last pose is the first.
        seed: of what is generated.
        look_every: frames between views; a multiple of those of a segment, which would be cut short otherwise.
        visible: where depth counts as visible; None: where the memory of this walk showed something.
    """
    world = make_world()
    start_at(world, walk, seed)
    path = walk.camera_to_world
    frames, looks, seconds = [], [], 0.0
    for first, last in _stretches(len(path), look_every):
        begun = time.perf_counter()
        frames += list(world.walk(path[first:last]))
        seconds += time.perf_counter() - begun
        if len(frames) < len(path):
            pose = interpolate_poses(path, torch.tensor([len(frames) - 0.5]), smooth=False)
            looks.append((pose, peek(world, pose)))
    again = [_alike(peek(world, pose), image) for pose, image in looks]
    area = Panorama(walk.height, 2 * walk.height).solid_angle()
    images, depths = ([getattr(frame, name).cpu() for frame in frames] for name in ("image", "depth"))
    shown = [frame.visibility.cpu() > VISIBLE for frame in frames]
    made = list(zip(images, depths, visible or shown, walk.image, walk.depth, strict=True))[1:-1]
    return Lap(
        last_first=_alike(images[-1], images[0]),
        revisit=_mean(again),
        truth=_mean([psnr(image, true, area) for image, _, _, true, _ in made]),
        delta=_mean([_delta(depth, true, area) for _, depth, _, _, true in made]),
        delta_visible=_mean([_delta(depth, true, area * mask) for _, depth, mask, _, true in made]),
        seconds=seconds / len(frames),
        images=images,
        visible=shown,
    )


def walk_long(
    make_world: MakeWorld,
    first: Walk,
    path: Tensor,  # [P + 1, 4, 4]
    laps: int,
    seed: int,
    look_every: int = LOOK_EVERY,
) -> LongWalk:
    """Several laps, each a part of a step further on than the one before, so that no pose comes twice.

    Args:
        make_world: gives a `World` that nothing was started in.
        first: the true rendering of the path's first pose.
        path: `[P + 1, 4, 4]` of one lap; the last pose is the first.
        laps: at least 2.
        seed: of what is generated.
        look_every: as for `walk_lap`.
    """
    world = make_world()
    start_at(world, first, seed)
    per_lap = len(path) - 1
    offsets = torch.arange(laps, dtype=path.dtype)[:, None] / laps
    poses = interpolate_poses(path, (torch.arange(per_lap) + offsets).flatten(), smooth=False)
    looks, last, times = {}, [], []
    for begin, end in _stretches(len(poses), look_every):
        begun = time.perf_counter()
        made = list(world.walk(poses[begin:end]))
        times.append((time.perf_counter() - begun) / len(made))
        ahead = end - 1
        if ahead < per_lap:  # the last lap's pose, a part of a step on, as it looks when one is first there
            looks[ahead] = peek(world, poses[ahead + (laps - 1) * per_lap][None])
        last += [frame.image for frame in made]
    again = [_alike(last[number + (laps - 1) * per_lap].cpu(), image) for number, image in looks.items()]
    settled = times[math.ceil(SETTLED / look_every) :] if len(times) > 8 * SETTLED // look_every else times
    quarter = max(len(settled) // 4, 1)
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "world.safetensors")
        world.save(file)
        megabytes = os.path.getsize(file) / 1e6
    return LongWalk(
        revisit=_mean(again),
        slowdown=_mean(settled[-quarter:]) / _mean(settled[:quarter]),
        seconds=_mean(times),
        megabytes=megabytes,
        frames=len(poses),
    )


def start_at(world: World, walk: Walk, seed: int) -> None:
    """Starts a world at a walk's first frame, with what is true of it."""
    world.start(
        image=walk.image[0],
        depth=walk.depth[0],
        prompt=walk.captions[0],
        camera_to_world=walk.camera_to_world[0],
        seed=seed,
    )


def peek(world: World, pose: Tensor) -> Tensor:  # [1, 4, 4] -> [H, W, 3]
    """What the world would show at a pose, which leaves no trace in it."""
    other = copy.deepcopy(world, {id(world.model): world.model})
    (frame,) = other.walk(pose)
    return frame.image.cpu()


def _stretches(num_frames: int, length: int) -> list[tuple[int, int]]:
    """Where parts of a walk begin and end: its first frame, which is given, and then so many at a time."""
    ends = [*range(1, num_frames, length), num_frames]
    return list(pairwise([0, *ends]))


def _alike(image: Tensor, other: Tensor) -> float:  # [H, W, 3]
    """PSNR, by solid angle, up to `EQUAL`."""
    return min(psnr(image, other, Panorama(*image.shape[:2]).solid_angle()), EQUAL)


def _delta(depth: Tensor, truth: Tensor, weight: Tensor) -> float:  # [H, W] each
    """Share of right depth; NaN where nothing counts."""
    return depth_metrics(depth, truth, weight).delta if bool(weight[truth > 0].sum() > 0) else math.nan


def _mean(values: list[float]) -> float:
    values = [value for value in values if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan
