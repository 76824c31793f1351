"""Where new space begins: places next to what was seen that the next frames will see and none has seen yet."""

from __future__ import annotations

import torch
from torch import Tensor

from evoworld.geometry import Panorama, invert_pose, transform_points

from .brick_conv import EDGE
from .feature_memory import FeatureMemory

SOLID = 0.5  # opacity from which what lies behind is hidden
_KEY_BITS = 20  # brick coordinates within -2^20 .. 2^20 - 1 make one int64


def frontier(
    memory: FeatureMemory,
    camera_to_world: Tensor,  # [T, 4, 4]
    camera: Panorama,
    reach: int,
    radius: float,
) -> Tensor:  # [K, 3] int32
    """The bricks at the edge of what was seen that cameras will look at.

    They are at most `reach` bricks from an observed one and `radius` metres from a camera, were neither observed nor
    looked through, and the memory shows nothing before them from one camera at least.

    Args:
        memory: what was seen.
        camera_to_world: `[T, 4, 4]`, rigid.
        camera: of the frames; a few pixels a brick are enough.
        reach: bricks, Chebyshev distance.
        radius: metres.

    Returns:
        `[K, 3]` int32 brick coordinates, each once, sorted by (x, y, z); no gradients.
    """
    observed = memory.grid.brick_coordinates
    if observed.shape[0] == 0:
        return observed
    with torch.no_grad():
        brick = EDGE * memory.voxel_size
        eyes = camera_to_world[:, :3, 3].to(torch.float32)
        bricks = observed[_distance(observed, eyes, brick) < radius + reach * brick]
        bricks = dilated(bricks, reach)
        bricks = bricks[_distance(bricks, eyes, brick) < radius]
        first_point = bricks * EDGE
        unseen = (memory.grid.lookup(first_point) < 0) & (memory.passed.lookup(first_point) < 0)
        bricks = bricks[unseen]
        return bricks[_in_sight(memory, bricks, camera_to_world, camera)]


def dilated(
    bricks: Tensor,  # [K, 3] int32
    reach: int,
) -> Tensor:  # [K', 3] int32
    """All bricks within a Chebyshev distance of some, these included, each once and sorted by (x, y, z).

    Example:
        >>> dilated(torch.tensor([[0, 0, 0], [0, 0, 1]], dtype=torch.int32), 1).shape
        torch.Size([36, 3])
    """
    for axis in range(3):  # one axis after the other: 3 (2 reach + 1) copies instead of (2 reach + 1)^3
        step = torch.zeros(2 * reach + 1, 3, dtype=torch.int32, device=bricks.device)
        step[:, axis] = torch.arange(-reach, reach + 1, device=bricks.device)
        keys = _keys((bricks[:, None] + step).reshape(-1, 3)).unique()
        bricks = _bricks(keys)
    return bricks


def _keys(bricks: Tensor) -> Tensor:  # [K, 3] int32 -> [K] int64
    x, y, z = (bricks.long() + (1 << _KEY_BITS)).unbind(-1)
    return (((x << (_KEY_BITS + 1)) + y) << (_KEY_BITS + 1)) + z


def _bricks(keys: Tensor) -> Tensor:  # [K] int64 -> [K, 3] int32
    mask = (1 << (_KEY_BITS + 1)) - 1
    parts = (keys >> (2 * (_KEY_BITS + 1)), (keys >> (_KEY_BITS + 1)) & mask, keys & mask)
    return (torch.stack(parts, -1) - (1 << _KEY_BITS)).to(torch.int32)


def _distance(
    bricks: Tensor,  # [K, 3] int32
    eyes: Tensor,  # [T, 3] metres
    brick: float,  # metres
) -> Tensor:  # [K] metres
    """From the nearest eye to each brick's middle."""
    return torch.cdist((bricks + 0.5) * brick, eyes).amin(1)


def _in_sight(
    memory: FeatureMemory,
    bricks: Tensor,  # [K, 3] int32
    camera_to_world: Tensor,  # [T, 4, 4]
    camera: Panorama,
) -> Tensor:  # [K] bool
    """Whether some camera sees a brick's middle, or what hides it lies no more than half a brick's diagonal before."""
    origins, directions = camera.rays(camera_to_world)
    shown = memory.render(origins.flatten(0, 1), directions.flatten(0, 1), image_width=camera.width)
    depth = torch.where(shown.opacity > SOLID, shown.depth, torch.inf).view(-1, camera.num_rays)  # [T, R]
    brick = EDGE * memory.voxel_size
    middle = ((bricks + 0.5) * brick).to(camera_to_world.dtype)
    local = transform_points(invert_pose(camera_to_world), middle)  # [T, K, 3]
    u, v = camera.project(local).unbind(-1)
    column = u.floor().long() % camera.width
    row = v.floor().long().clamp(0, camera.height - 1)
    hidden = local.norm(dim=-1) > depth.gather(1, row * camera.width + column) + 0.87 * brick
    return ~hidden.all(0)
