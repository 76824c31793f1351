"""Ways through a world that is not there yet: each stretch is planned from the depth of the frame before it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from evoworld.apps.trajectories import level_pose, yaw_of

STEP = 0.15  # metres between frames
STRETCH = 4  # frames planned at a time, at least
CLEAR = 0.45  # metres that a walker keeps from what stands in the way
TALL, DEEP = 0.5, 0.9  # metres above and below the camera at which things stand in the way
NOTHING = 30.0  # metres of free space where there is only sky
SHOULDERS = 0.25  # metres: half of the width that must be free
TURN = math.radians(60)  # to each side that `forward` may turn, as long as it finds a way
WIDEST_LOOP, SMALLEST_LOOP = 1.2, 0.05  # metres, radius
VISITED = 0.6  # metres around earlier places within which `explore` counts them
HEADINGS = 72


def clearance(depth: Tensor) -> Tensor:  # [H, W] metres -> [W] metres
    """How far one can go in the direction of each column of a level panorama before something stands in the way.

    Args:
        depth: `[H, W]` metres along the ray, 0 where nothing is.

    Returns:
        `[W]` metres along the ground, at most 30.

    >>> clearance(torch.full((8, 16), 2.0)).round(decimals=1).unique().tolist()  # within a ball
    [2.0]
    """
    height = depth.shape[0]
    latitude = (0.5 - (torch.arange(height, dtype=depth.dtype) + 0.5) / height)[:, None] * math.pi
    above, along = depth * latitude.sin(), depth * latitude.cos()
    in_the_way = (depth > 0) & (above < TALL) & (above > -DEEP)
    return torch.where(in_the_way, along, NOTHING).amin(0).clamp(max=NOTHING)


def free_way(free: Tensor) -> Tensor:  # [W] metres -> [72] metres
    """How far someone with shoulders can go from `clearance`, for 72 headings evenly spaced from column 0 on.

    A point at distance c and angle a from the heading is met after c cos a, if it lies within the shoulders' width.
    """
    width = len(free)
    column = (torch.arange(width, dtype=free.dtype) + 0.5) * (2 * math.pi / width)
    heading = torch.arange(HEADINGS, dtype=free.dtype) * (2 * math.pi / HEADINGS)
    angle = column[None] - heading[:, None]
    met = (free * angle.cos() > 0) & ((free * angle.sin()).abs() < SHOULDERS + free * (math.pi / width))
    return torch.where(met, free * angle.cos(), NOTHING).amin(1)


def loop(depth: Tensor, pose: Tensor, num_frames: int) -> Tensor:  # [H, W], [4, 4] -> [N, 4, 4]
    """A circle through the pose, as large as the free space around it allows; the last frame is the first again.

    Args:
        depth: `[H, W]` metres, of the panorama at the pose.
        pose: `[4, 4]` camera-to-world, level.
        num_frames: of the walk, at least 1.

    Returns:
        `[num_frames, 4, 4]`, all with the yaw of the pose.
    """
    free = clearance(depth) - CLEAR
    width = len(free)
    # A chord that leaves a circle of radius r at the angle c from its tangent is 2 r sin c long.
    chord = torch.arange(1, width // 2, dtype=free.dtype) * (2 * math.pi / width)
    columns = torch.arange(width)[:, None]
    best = (-math.inf, 0, 1)
    for side in (1, -1):
        ahead = free[(columns + side * torch.arange(1, width // 2)) % width]
        radius, start = (ahead / (2 * chord.sin())).amin(1).max(0)
        best = max(best, (float(radius), int(start), side))
    radius, start, side = best
    radius = min(max(radius, SMALLEST_LOOP), WIDEST_LOOP)
    tangent = (start + 0.5) / width * 2 * math.pi - math.pi  # to the right of the way that the camera looks
    turned = torch.linspace(0, 2 * math.pi, num_frames, dtype=torch.float64)
    along, across = radius * turned.sin(), side * radius * (1 - turned.cos())
    if num_frames > 1:
        along[-1] = across[-1] = 0.0
    return _moved(pose, along, across, tangent)


def stretches(
    name: str,
    first: tuple[Tensor, Tensor],
    num_frames: int,
    segment: int = 1,
) -> Iterator[Tensor]:
    """Poses of a walk called `forward` or `explore`, a few at a time; send the depth of the last of them back.

    `forward` keeps its direction as long as there is a way within 60 degrees of it; `explore` turns to where it is far
    and where it has not been.

    Args:
        name: of the walk.
        first: depth `[H, W]` and pose `[4, 4]` of the first frame, which counts but is not given again.
        num_frames: of the walk.
        segment: frames that are made together; whole segments are planned at a time.

    Yields:
        `[n, 4, 4]` camera-to-world poses, n up to 4 or the next multiple of segment, all with the yaw of the first.
    """
    depth, pose = first
    stretch = -(-STRETCH // segment) * segment
    heading, places, left = 0.0, [pose[:2, 3].double()], num_frames - 1
    while left > 0:
        way = free_way(clearance(depth)) - CLEAR
        heading = _choose(name, way, heading, pose, places)
        reach = float(way[_number(heading)].clamp(0, stretch * STEP))
        count = min(stretch, left)
        along = torch.arange(1, count + 1, dtype=torch.float64) * (reach / stretch)
        poses = _moved(pose, along, torch.zeros_like(along), heading)
        depth = yield poses
        pose, left = poses[-1], left - count
        places.append(pose[:2, 3].double())


def _choose(name: str, way: Tensor, heading: float, pose: Tensor, places: list[Tensor]) -> float:
    """The heading to go on with, to the right of the way that the camera looks (radians)."""
    headings = torch.arange(HEADINGS, dtype=torch.float64) * (2 * math.pi / HEADINGS) - math.pi
    turn = (headings - heading + math.pi) % (2 * math.pi) - math.pi
    reach = way.double().clamp(max=4.0)
    if name == "forward":
        ahead = (turn.abs() <= TURN) & (reach > STEP)
        score = torch.where(ahead, reach.clamp(max=1.0) - turn.abs() / TURN, reach - 10.0)
    else:
        yaw = float(yaw_of(pose)) - headings
        target = pose[:2, 3].double() + reach.clamp(0, 1.0)[:, None] * torch.stack((yaw.cos(), yaw.sin()), -1)
        visited = (torch.cdist(target, torch.stack(places)) < VISITED).sum(1)
        score = reach - 1.0 * visited - 0.3 * turn.abs()
    return float(headings[score.argmax()])


def _number(heading: float) -> int:
    return round((heading + math.pi) / (2 * math.pi) * HEADINGS) % HEADINGS


def _moved(pose: Tensor, along: Tensor, across: Tensor, heading: float) -> Tensor:  # [4, 4], [N], [N] -> [N, 4, 4]
    """The pose, moved along a heading and to the right of it."""
    yaw = yaw_of(pose).double()
    direction = yaw - heading
    forward = torch.stack((direction.cos(), direction.sin(), torch.zeros_like(direction)))
    right = torch.stack((direction.sin(), -direction.cos(), torch.zeros_like(direction)))
    places = pose[:3, 3].double() + along[:, None] * forward + across[:, None] * right
    return level_pose(places, yaw.expand(len(places))).float()
