"""voxel_scatter as a Warp kernel: one thread a ray (Warp's CPU runs them one after another), atomic adds, same table.

The channels of a point are one fixed-size vector, so that Warp's compiler can keep them in registers.
"""

from functools import cache
from typing import Any

import torch
import warp as wp
from torch import Tensor

from benchmarks.inputs import Rays

wp.config.log_level = wp.LOG_WARNING
wp.set_device("cpu")


@wp.func
def find_row(
    lattice: wp.vec3i,
    directory: wp.array3d(dtype=wp.int32),  # [Dx, Dy, Dz]
    pages: wp.array2d(dtype=wp.int32),  # [P, 512]
    page_origin: wp.vec3i,
):
    x, y, z = lattice[0] >> 5, lattice[1] >> 5, lattice[2] >> 5
    x, y, z = x - page_origin[0], y - page_origin[1], z - page_origin[2]
    row = wp.int32(-1)
    if x >= 0 and y >= 0 and z >= 0 and x < directory.shape[0] and y < directory.shape[1] and z < directory.shape[2]:
        page = directory[x, y, z]
        if page >= 0:
            slot = (((lattice[0] >> 2) & 7) * 8 + ((lattice[1] >> 2) & 7)) * 8 + ((lattice[2] >> 2) & 7)
            brick = pages[page, slot]
            if brick >= 0:
                row = brick * 64 + ((lattice[0] & 3) * 4 + (lattice[1] & 3)) * 4 + (lattice[2] & 3)
    return row


@cache
def kernel_for(channels: int) -> tuple[Any, Any]:
    """The kernel for this many channels, and the vector type of its features."""
    vector = wp.types.vector(channels, wp.float32)

    @wp.kernel(enable_backward=False, module="unique")
    def splat(
        features: wp.array(dtype=vector),  # [R]
        depth: wp.array(dtype=wp.float32),  # [R]
        origins: wp.array(dtype=wp.vec3),  # [R]
        directions: wp.array(dtype=wp.vec3),  # [R]
        directory: wp.array3d(dtype=wp.int32),  # [Dx, Dy, Dz]
        pages: wp.array2d(dtype=wp.int32),  # [P, 512]
        page_origin: wp.vec3i,
        grid_origin: wp.vec3,
        voxel_size: wp.float32,
        feature_sum: wp.array(dtype=vector),  # [V]
        weight_sum: wp.array(dtype=wp.float32),  # [V]
    ):
        ray = wp.tid()
        t = depth[ray]
        if t > 0.0 and wp.isfinite(t):
            g = ((origins[ray] - grid_origin) + t * directions[ray]) / voxel_size
            low = wp.vec3(wp.floor(g[0]), wp.floor(g[1]), wp.floor(g[2]))
            fraction = g - low
            value = features[ray]
            for corner in range(8):
                i, j, k = corner >> 2, (corner >> 1) & 1, corner & 1
                lattice = wp.vec3i(int(low[0]) + i, int(low[1]) + j, int(low[2]) + k)
                row = find_row(lattice, directory, pages, page_origin)
                if row >= 0:
                    a = wp.where(i == 1, fraction[0], 1.0 - fraction[0])
                    a *= wp.where(j == 1, fraction[1], 1.0 - fraction[1])
                    a *= wp.where(k == 1, fraction[2], 1.0 - fraction[2])
                    wp.atomic_add(feature_sum, row, a * value)
                    wp.atomic_add(weight_sum, row, a)

    return splat, vector


def voxel_scatter(rays: Rays) -> tuple[Tensor, Tensor]:
    """feature_sum [V, C], weight_sum [V]."""
    channels, grid = rays.features.shape[1], rays.grid
    splat, vector = kernel_for(channels)
    feature_sum = torch.zeros(grid.num_voxels, channels)
    weight_sum = torch.zeros(grid.num_voxels)
    wp.launch(
        splat,
        dim=rays.depth.shape[0],
        inputs=[
            wp.from_torch(rays.features, dtype=vector),
            wp.from_torch(rays.depth),
            wp.from_torch(rays.origins, dtype=wp.vec3),
            wp.from_torch(rays.directions, dtype=wp.vec3),
            wp.from_torch(grid.directory),
            wp.from_torch(grid.pages),
            wp.vec3i(*grid.page_origin),
            wp.vec3(*grid.origin),
            grid.voxel_size,
        ],
        outputs=[wp.from_torch(feature_sum, dtype=vector), wp.from_torch(weight_sum)],
    )
    return feature_sum, weight_sum
