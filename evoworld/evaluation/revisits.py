"""Walks through generated worlds that come back: whether what was there is there again."""

from __future__ import annotations

import copy
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evoworld.data.walk import Walk
from evoworld.geometry import Panorama, interpolate_poses
from evoworld.world.evolve import World

from .metrics import depth_metrics, psnr

LOOK_EVERY = 4  # frames of the first lap between two places that are looked at again
VISIBLE = 0.5
EQUAL = 60.0  # dB from which pictures count as equal: the rounding to 8 bits is at 59
SETTLED = 20  # first frames of a long walk, whose times are not looked at: memory and caches are new

MakeWorld = Callable[[], World]


@dataclass
class Lap:
    """What a closed walk came to; means over its frames, decibels and shares."""

    last_first: float  # PSNR of the last frame against the first, at the same pose
    revisit: float  # PSNR of views at poses between those of the walk: when first there, and after the lap
    truth: float  # PSNR of all frames but the first against the true renderings
    delta: float  # share of pixels with the right depth within 25 %
    delta_visible: float  # the same where the memory showed them
    seconds: float  # a frame
    images: list[Tensor] = field(default_factory=list)  # [H, W, 3] each


@dataclass
class LongWalk:
    """What a walk of several laps came to."""

    revisit: float  # PSNR, dB, as of `Lap`, after all laps
    slowdown: float  # time of the last quarter's frames over that of the first quarter's
    seconds: float  # a frame
    megabytes: float  # of the world file
    frames: int


def walk_lap(make_world: MakeWorld, walk: Walk, seed: int) -> Lap:
    """A closed walk from a panorama with depth, and views between its poses when first there and after the lap.

    Args:
        make_world: gives a `World` that nothing was started in.
        walk: true renderings of at least 2 frames; the last pose is the first.
        seed: of what is generated.
    """
    world = make_world()
    start_at(world, walk, seed)
    path = walk.camera_to_world
    frames, looks, seconds = [], [], 0.0
    for first in range(0, len(path), LOOK_EVERY):
        begun = time.perf_counter()
        frames += list(world.walk(path[first : first + LOOK_EVERY]))
        seconds += time.perf_counter() - begun
        if len(frames) < len(path):
            pose = interpolate_poses(path, torch.tensor([len(frames) - 0.5]), smooth=False)
            looks.append((pose, peek(world, pose)))
    again = [_alike(peek(world, pose), image) for pose, image in looks]
    area = Panorama(walk.height, 2 * walk.height).solid_angle()
    made = list(zip(frames, walk.image, walk.depth, strict=True))[1:]
    return Lap(
        last_first=_alike(frames[-1].image.cpu(), frames[0].image.cpu()),
        revisit=_mean(again),
        truth=_mean([psnr(frame.image.cpu(), image, area) for frame, image, _ in made]),
        delta=_mean([_delta(frame.depth.cpu(), depth, area) for frame, _, depth in made]),
        delta_visible=_mean(
            [_delta(frame.depth.cpu(), depth, area * (frame.visibility.cpu() > VISIBLE)) for frame, _, depth in made]
        ),
        seconds=seconds / len(frames),
        images=[frame.image.cpu() for frame in frames],
    )


def walk_long(make_world: MakeWorld, first: Walk, path: Tensor, laps: int, seed: int) -> LongWalk:
    """Several laps, each a part of a step further on than the one before, so that no pose comes twice.

    Args:
        make_world: gives a `World` that nothing was started in.
        first: the true rendering of the path's first pose.
        path: `[P + 1, 4, 4]` of one lap; the last pose is the first.
        laps: at least 2.
        seed: of what is generated.
    """
    world = make_world()
    start_at(world, first, seed)
    per_lap = len(path) - 1
    offsets = torch.arange(laps, dtype=path.dtype)[:, None] / laps
    poses = interpolate_poses(path, (torch.arange(per_lap) + offsets).flatten(), smooth=False)
    looks, last, times = {}, [], []
    for begin in range(0, len(poses), LOOK_EVERY):
        begun = time.perf_counter()
        made = list(world.walk(poses[begin : begin + LOOK_EVERY]))
        times.append((time.perf_counter() - begun) / len(made))
        ahead = begin + LOOK_EVERY - 1
        if ahead < per_lap:  # the last lap's pose, a part of a step on, as it looks when one is first there
            looks[ahead] = peek(world, poses[ahead + (laps - 1) * per_lap][None])
        last += [frame.image for frame in made]
    again = [_alike(last[number + (laps - 1) * per_lap].cpu(), image) for number, image in looks.items()]
    settled = times[SETTLED // LOOK_EVERY :] if len(times) > 8 * SETTLED // LOOK_EVERY else times
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


def _alike(image: Tensor, other: Tensor) -> float:  # [H, W, 3]
    """PSNR, by solid angle, up to `EQUAL`."""
    return min(psnr(image, other, Panorama(*image.shape[:2]).solid_angle()), EQUAL)


def _delta(depth: Tensor, truth: Tensor, weight: Tensor) -> float:  # [H, W] each
    """Share of right depth; NaN where nothing counts."""
    return depth_metrics(depth, truth, weight).delta if bool(weight[truth > 0].sum() > 0) else math.nan


def _mean(values: list[float]) -> float:
    values = [value for value in values if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan
