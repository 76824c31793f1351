"""Generated frames are written once: what was seen first stays as it was."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evoworld.geometry import Camera

from .memory import Memory, MemoryConfig
from .surfels import DETAIL, SKY, SKY_FROM

KNOWN = 0.5  # visibility from which a pixel is not written again
FREE = 0.93  # of the range of what is known: a point nearer than that stands in space that was seen to be free
FREE_COARSE = 0.7  # the same where it was seen in large pixels, whose range is less certain
OPEN = 0.1  # opacity up to which a viewpoint sees nothing but sky
WITNESSES = 3  # earlier viewpoints that new points are checked from
APART = 0.4  # metres between them


def first_write_config(voxel_size: float, feature_dim: int = 3) -> MemoryConfig:
    """What a memory of generated frames is made with: points for what they show, voxels for where surfaces stand."""
    return MemoryConfig(voxel_size, feature_dim, (4.0, 1.0), ((0.25, math.inf), (0.0, 4.0)), surfels=True)


@torch.no_grad()
def observe_first(
    memory: Memory,
    image: Tensor,  # [H, W, C] 0..1
    depth: Tensor,  # [H, W] metres
    camera_to_world: Tensor,  # [4, 4]
    camera: Camera,
) -> Tensor:  # [H, W] bool
    """Adds the pixels of a frame that the memory does not show yet; the first to write a place wins.

    A frame that was generated differs a little from what is remembered. Averaging the two, again at every step, lets
    the world drift; written once it stays. Depth that is wrong and too near would grow into the view as the walker
    comes closer: a new point is left out where the memory shows, to this camera or to earlier ones near by, that its
    place is free: ``range < FREE * range shown``, or open sky.

    Args:
        memory: what is added to, best made with `first_write_config`.
        image: `[H, W, C]`, what was generated or seen.
        depth: `[H, W]` metres as the camera gives them, not positive or not finite for sky.
        camera_to_world: `[4, 4]`, rigid.
        camera: of the frame's size.

    Returns:
        `[H, W]` bool: the pixels that were written.

    Raises:
        ValueError: as `Memory.observe` does.

    Example:
        >>> from evoworld.geometry import Panorama
        >>> memory, camera = Memory(config=first_write_config(0.1)), Panorama(8, 16)
        >>> white, black, depth = torch.ones(8, 16, 3), torch.zeros(8, 16, 3), torch.ones(8, 16)
        >>> [bool(observe_first(memory, x, depth, torch.eye(4), camera).any()) for x in (white, black)]
        [True, False]
        >>> memory.query(camera, torch.eye(4)).features.min().item()
        1.0
    """
    memory.check_frame(image, depth, camera_to_world, camera)
    view = memory.query(camera, camera_to_world)
    distance = camera.range_from_depth(depth.float())
    distance = torch.where(torch.isfinite(distance) & (distance > 0), distance, SKY)
    new = view.visibility < KNOWN
    free = torch.where(view.visibility > 0, FREE_COARSE, FREE) * view.depth
    new &= distance >= free
    if not memory.surfels.empty:
        new &= ~memory.surfels.holds(camera, camera_to_world.to(depth), distance, DETAIL / KNOWN)
    new &= ~_stands_in_free_space(memory, new, distance, camera_to_world.to(depth), camera)
    if new.any():
        memory.observe(image, depth, camera_to_world, camera, new)
    return new


def _stands_in_free_space(
    memory: Memory,
    mask: Tensor,  # [H, W] bool
    distance: Tensor,  # [H, W] metres
    camera_to_world: Tensor,  # [4, 4]
    camera: Camera,
) -> Tensor:  # [H, W] bool
    """Which pixels of the mask lie in front of what earlier viewpoints saw."""
    result = torch.zeros_like(mask)
    origins, directions = (rays[mask.flatten()] for rays in camera.rays(camera_to_world))
    if origins.shape[0] == 0:
        return result
    points = torch.addcmul(origins, directions, distance[mask][:, None])
    reached, blocked = distance[mask], torch.zeros_like(points[:, 0], dtype=torch.bool)
    for witness in _witnesses(memory.poses[:, :3, 3], camera_to_world[:3, 3]):
        towards = points - witness
        length = towards.norm(dim=-1)
        towards = towards / length.clamp_min(1e-6)[:, None]
        shown = memory.render(witness.expand_as(towards).contiguous(), towards, centre=witness.tolist())
        known = (shown.opacity > 0.5) & (shown.seen > 0)
        blocked |= known & (length < FREE * shown.distance - memory.voxel_size)
        blocked |= (shown.opacity < OPEN) & (reached < SKY_FROM) & memory.background.surely_seen(towards)
    return result.masked_scatter_(mask, blocked)


def _witnesses(
    places: Tensor,  # [N, 3]
    here: Tensor,  # [3]
) -> Tensor:  # [up to WITNESSES, 3]
    """The places nearest to one, none within APART of another."""
    away = (places - here).norm(dim=-1)
    chosen = []
    while len(chosen) < WITNESSES and torch.isfinite(away).any():
        chosen.append(places[away.argmin()])
        away = away.masked_fill((places - chosen[-1]).norm(dim=-1) < APART, torch.inf)
    return torch.stack(chosen) if chosen else places[:0]
