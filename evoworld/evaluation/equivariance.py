"""Whether turning what a model is given turns what it makes."""

from __future__ import annotations

import math

import torch

from evoworld.data.walk import Walk, level_poses
from evoworld.geometry import Panorama
from evoworld.world.condition import Condition
from evoworld.world.model import WorldModel

from .metrics import psnr
from .revisits import EQUAL, MakeWorld, start_at


@torch.no_grad()
def roll_error(model: WorldModel | None, condition: Condition, turns: int, seed: int) -> float:
    """The largest difference in RGB-D between frames of a turned condition and turned frames of the condition.

    The latents and the time that the network is given are drawn once and turned along; the result is decoded.

    Args:
        model: None: `Condition.filled` in its place.
        condition: of B segments.
        turns: by how many tokens' widths to the right; without a model, that of 4 pixels.
        seed: of the latents.
    """
    generator = torch.Generator().manual_seed(seed)
    if model is None:
        columns = 4 * turns
        return _largest(condition.roll(columns).filled(), condition.filled().roll(columns, -2))
    columns = model.config.dit.token_size * turns
    context = model.context(condition)
    latents = torch.randn(context.base.shape, generator=generator).to(context.base)
    shift = columns * latents.shape[-2] // condition.known.shape[-2]
    time = torch.full((len(latents),), 0.5, device=latents.device)
    made = model.decode(model.dit(latents, time, context), condition)
    turned = condition.roll(columns)
    other = model.decode(model(latents.roll(shift, -2), time, turned), turned)
    return _largest(other, made.roll(columns, -2))


def turned_likeness(make_world: MakeWorld, walk: Walk, columns: int, seed: int) -> float:
    """PSNR between a walk from a turned picture along turned poses, and the walk, turned; dB, the mean of the frames.

    The same noise is drawn for both and not turned along, so that what is sampled differs beyond what was seen.

    Args:
        make_world: gives a `World` that nothing was started in.
        walk: of at least 2 frames with depth; the first is given and does not count.
        columns: pixels to the right.
        seed: of what is generated.
    """
    x, y = walk.camera_to_world[0, :2, 2].tolist()
    yaw = math.atan2(y, x) + 2 * math.pi * columns / (2 * walk.height)  # the world goes right as the camera goes left
    turned = Walk(
        walk.image.roll(columns, 2),
        walk.depth.roll(columns, 2),
        level_poses(walk.camera_to_world[:, :3, 3], yaw),
        walk.captions,
        walk.name,
    )
    made = []
    for each in (walk, turned):
        world = make_world()
        start_at(world, each, seed)
        made.append([frame.image.cpu() for frame in world.walk(each.camera_to_world)][1:])
    area = Panorama(walk.height, 2 * walk.height).solid_angle()
    found = [min(psnr(other, image.roll(columns, 1), area), EQUAL) for image, other in zip(*made, strict=True)]
    return sum(found) / len(found)


def _largest(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max())
