"""Generated frames are written once: what was seen first stays as it was."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evoworld.geometry import Camera, Panorama

from .memory import Memory, MemoryConfig, View
from .surfels import DETAIL, SKY
from .viewpoints import CLEAR, ROWS

KNOWN = 0.5  # visibility from which a pixel is not written again
CLEAR_COARSE = 0.7  # what CLEAR is where a camera sees large pixels, whose range is less certain
NEAR = 0.25  # metres: the walker's own space, in which a wall that was generated wrongly is not shown


def first_write_config(voxel_size: float, feature_dim: int = 3) -> MemoryConfig:
    """What a memory of generated frames is made with: points for what they show, voxels for where surfaces stand."""
    footprints = (0.25, math.inf), (0.0, 4.0)
    return MemoryConfig(voxel_size, feature_dim, (4.0, 1.0), footprints, surfels=True, near=NEAR)


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
    comes closer, and into what was seen from elsewhere: a new point is left out where its place is known to be free,
    since this camera or earlier ones near the point were shown what lies behind it (`Viewpoints`).

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
    if memory.viewpoints.empty:
        _look_back(memory)
    view = memory.query(camera, camera_to_world)
    pose = camera_to_world.to(depth)
    distance = camera.range_from_depth(depth.float())
    distance = torch.where(torch.isfinite(distance) & (distance > 0), distance, SKY)
    known = view.visibility >= KNOWN
    clear = torch.where(view.visibility > 0, CLEAR_COARSE, CLEAR) * view.depth
    new = ~known & (distance >= clear)
    if not memory.surfels.empty:
        new &= ~memory.surfels.holds(camera, pose, distance, DETAIL / KNOWN)
    origins, directions = (rays[new.flatten()] for rays in camera.rays(pose))
    points = torch.addcmul(origins, directions, distance[new][:, None])
    new = new.masked_scatter(new, ~memory.viewpoints.saw_past(points, memory.voxel_size))
    if memory.viewpoints.wants(pose[:3, 3]):
        memory.viewpoints.add(torch.where(known, _range_shown(view), distance), pose, camera)
    if new.any():
        memory.observe(image, depth, camera_to_world, camera, new)
    return new


def _look_back(memory: Memory) -> None:
    """Viewpoints of the frames that a memory was observed from, by what it shows there now."""
    camera = Panorama(ROWS, 2 * ROWS)
    for pose in memory.poses:
        if memory.viewpoints.wants(pose[:3, 3]):
            view = memory.query(camera, pose)
            memory.viewpoints.add(torch.where(view.visibility >= KNOWN, _range_shown(view), 0.0), pose, camera)


def _range_shown(view: View) -> Tensor:  # [H, W] metres
    return torch.where(view.depth > 0, view.depth, SKY)
