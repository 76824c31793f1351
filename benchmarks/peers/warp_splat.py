"""voxel_scatter as a Warp kernel: one thread a ray (Warp's CPU runs them one after another), atomic adds, same table.

Written twice: with one atomic addition a channel, as such kernels usually are, and with all channels of a point as one
vector of a size known to the compiler, which is what a Warp expert would do for speed.
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


@wp.struct
class Cell:
    low: wp.vec3i
    fraction: wp.vec3


@wp.func
def find_cell(origin: wp.vec3, direction: wp.vec3, t: wp.float32, grid_origin: wp.vec3, voxel_size: wp.float32):
    g = ((origin - grid_origin) + t * direction) / voxel_size
    low = wp.vec3(wp.floor(g[0]), wp.floor(g[1]), wp.floor(g[2]))
    cell = Cell()
    cell.low = wp.vec3i(int(low[0]), int(low[1]), int(low[2]))
    cell.fraction = g - low
    return cell


@wp.func
def corner_weight(fraction: wp.vec3, offset: wp.vec3i):
    a = wp.where(offset[0] == 1, fraction[0], 1.0 - fraction[0])
    a *= wp.where(offset[1] == 1, fraction[1], 1.0 - fraction[1])
    return a * wp.where(offset[2] == 1, fraction[2], 1.0 - fraction[2])


@wp.kernel(enable_backward=False)
def splat_channels(
    features: wp.array2d(dtype=wp.float32),  # [R, C]
    depth: wp.array(dtype=wp.float32),  # [R]
    origins: wp.array(dtype=wp.vec3),  # [R]
    directions: wp.array(dtype=wp.vec3),  # [R]
    directory: wp.array3d(dtype=wp.int32),  # [Dx, Dy, Dz]
    pages: wp.array2d(dtype=wp.int32),  # [P, 512]
    page_origin: wp.vec3i,
    grid_origin: wp.vec3,
    voxel_size: wp.float32,
    feature_sum: wp.array2d(dtype=wp.float32),  # [V, C]
    weight_sum: wp.array(dtype=wp.float32),  # [V]
):
    ray = wp.tid()
    t = depth[ray]
    if t > 0.0 and wp.isfinite(t):
        cell = find_cell(origins[ray], directions[ray], t, grid_origin, voxel_size)
        for corner in range(8):
            offset = wp.vec3i(corner >> 2, (corner >> 1) & 1, corner & 1)
            row = find_row(cell.low + offset, directory, pages, page_origin)
            if row >= 0:
                a = corner_weight(cell.fraction, offset)
                for channel in range(features.shape[1]):
                    wp.atomic_add(feature_sum, row, channel, a * features[ray, channel])
                wp.atomic_add(weight_sum, row, a)


@cache
def vector_kernel(channels: int) -> tuple[Any, Any]:
    """The kernel for this many channels, and the vector type of its features."""
    vector = wp.types.vector(channels, wp.float32)

    @wp.kernel(enable_backward=False, module="unique")
    def splat_vectors(
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
            cell = find_cell(origins[ray], directions[ray], t, grid_origin, voxel_size)
            value = features[ray]
            for corner in range(8):
                offset = wp.vec3i(corner >> 2, (corner >> 1) & 1, corner & 1)
                row = find_row(cell.low + offset, directory, pages, page_origin)
                if row >= 0:
                    a = corner_weight(cell.fraction, offset)
                    wp.atomic_add(feature_sum, row, a * value)
                    wp.atomic_add(weight_sum, row, a)

    return splat_vectors, vector


def voxel_scatter(rays: Rays) -> tuple[Tensor, Tensor]:
    """feature_sum [V, C], weight_sum [V]; one atomic addition a channel."""
    return _launch(splat_channels, None, rays)


def voxel_scatter_vectors(rays: Rays) -> tuple[Tensor, Tensor]:
    """feature_sum [V, C], weight_sum [V]; one addition of a vector a corner."""
    return _launch(*vector_kernel(rays.features.shape[1]), rays)


def _launch(kernel: Any, vector: Any, rays: Rays) -> tuple[Tensor, Tensor]:
    channels, grid = rays.features.shape[1], rays.grid
    feature_sum = torch.zeros(grid.num_voxels, channels)
    weight_sum = torch.zeros(grid.num_voxels)
    wp.launch(
        kernel,
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
