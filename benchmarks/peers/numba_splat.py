"""voxel_scatter as a Numba loop over the same table: serial, because Numba's CPU has no atomic additions."""

import numba
import numpy as np
import torch
from torch import Tensor

from benchmarks.inputs import Rays


@numba.njit(fastmath={"contract", "nsz"}, cache=False)
def splat(
    features,  # [R, C]
    depth,  # [R]
    origins,  # [R, 3]
    directions,  # [R, 3]
    directory,  # [Dx, Dy, Dz]
    pages,  # [P, 512]
    page_origin,  # [3]
    grid_origin,  # [3]
    voxel_size,
    feature_sum,  # [V, C]
    weight_sum,  # [V]
):
    low = np.empty(3, np.int32)
    fraction = np.empty(3, np.float32)
    for ray in range(depth.shape[0]):
        t = depth[ray]
        if not (t > 0 and np.isfinite(t)):
            continue
        for axis in range(3):
            g = ((origins[ray, axis] - grid_origin[axis]) + t * directions[ray, axis]) / voxel_size
            low[axis] = np.int32(np.floor(g))
            fraction[axis] = g - np.floor(g)
        for corner in range(8):
            i, j, k = corner >> 2, (corner >> 1) & 1, corner & 1
            x, y, z = low[0] + i, low[1] + j, low[2] + k
            px, py, pz = (x >> 5) - page_origin[0], (y >> 5) - page_origin[1], (z >> 5) - page_origin[2]
            if px < 0 or py < 0 or pz < 0:
                continue
            if px >= directory.shape[0] or py >= directory.shape[1] or pz >= directory.shape[2]:
                continue
            page = directory[px, py, pz]
            if page < 0:
                continue
            brick = pages[page, (((x >> 2) & 7) * 8 + ((y >> 2) & 7)) * 8 + ((z >> 2) & 7)]
            if brick < 0:
                continue
            row = np.int64(brick) * 64 + ((x & 3) * 4 + (y & 3)) * 4 + (z & 3)
            one = np.float32(1)
            a = fraction[0] if i else one - fraction[0]
            a *= fraction[1] if j else one - fraction[1]
            a *= fraction[2] if k else one - fraction[2]
            for channel in range(features.shape[1]):
                feature_sum[row, channel] += a * features[ray, channel]
            weight_sum[row] += a


def voxel_scatter(rays: Rays) -> tuple[Tensor, Tensor]:
    """feature_sum [V, C], weight_sum [V]."""
    grid = rays.grid
    feature_sum = torch.zeros(grid.num_voxels, rays.features.shape[1])
    weight_sum = torch.zeros(grid.num_voxels)
    splat(
        rays.features.numpy(),
        rays.depth.numpy(),
        rays.origins.numpy(),
        rays.directions.numpy(),
        grid.directory.numpy(),
        grid.pages.numpy(),
        np.array(grid.page_origin, np.int32),
        np.array(grid.origin, np.float32),
        np.float32(grid.voxel_size),
        feature_sum.numpy(),
        weight_sum.numpy(),
    )
    return feature_sum, weight_sum
