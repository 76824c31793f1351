"""voxel_scatter: one program adds a block of rays to the 8 lattice points around where each ray ends."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .launch import FEATURE_TYPES, blocks, check_tensor, device_of, grid_view
from .ray_march import tile_rays
from .sparse_grid import (
    BRICK_BITS,
    MAX_LATTICE,
    cell_point,
    choose,
    corner_rows,
    find_neighbours,
    lattice_line,
    load_vector,
    row_offsets,
    store_vector,
    trilinear_gradient,
    trilinear_weights,
)


@triton.jit
def scatter_points(
    depth,  # [R]
    origins,  # [R, 3]
    directions,  # [R, 3]
    grid,  # Grid
    ray,  # [R'] int64
    exists,  # [R'] bool
):
    """(rows, fraction, t, valid): the 8 rows around where each ray ends, -1 where nothing is allocated.

    A ray has no point, and no rows, where its depth is not positive or not finite, or leads beyond any grid.
    """
    t = tl.load(depth + ray, mask=exists, other=0.0)
    valid = (t > 0.0) & (t < float("inf"))
    t = tl.where(valid, t, 0.0)
    base, slope = lattice_line(grid, load_vector(origins, ray, valid), load_vector(directions, ray, valid))
    for i in tl.static_range(3):
        valid = valid & (tl.abs(tl.fma(t, slope[i], base[i])) < MAX_LATTICE)
    zero = tl.zeros_like(t)
    nowhere = (zero, zero, zero)
    cell, fraction = cell_point(choose(valid, base, nowhere), choose(valid, slope, nowhere), t)
    none = tl.full(ray.shape, -1, tl.int32)
    brick = (cell[0] >> BRICK_BITS, cell[1] >> BRICK_BITS, cell[2] >> BRICK_BITS)
    bricks = find_neighbours(grid, brick, valid, (none, none, none, none, none, none, none, none))
    return corner_rows(bricks, cell, tl.int64), fraction, t, valid


@triton.jit(do_not_specialize=["grid", "num_rays", "width"])
def voxel_scatter_forward_kernel(
    feature_sum,  # [V, C]
    weight_sum,  # [V]
    features,  # [R, C]
    depth,  # [R]
    origins,  # [R, 3]
    directions,  # [R, 3]
    weight,  # [R] or None
    grid,  # Grid
    num_rays,
    width,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TILE_X: tl.constexpr,
):
    # What: adds each ray's features to the 8 lattice points around where the ray ends.
    # Maths: feature_sum[c] += a_c weight features, weight_sum[c] += a_c weight, a_c trilinear in the point's cell.
    # Gradient: voxel_scatter_backward_kernel, a gather.
    # Mapping: a tile of BLOCK_R rays a program, a lane a ray for addresses, lanes along channels for the additions.
    # Memory: reads each ray once, 8 table entries; 8 (C + 1) relaxed float atomics a ray, which is what bounds it.
    ray, exists = tile_rays(num_rays, width, BLOCK_R, TILE_X)
    rows, fraction, _, valid = scatter_points(depth, origins, directions, grid, ray, exists)
    corner_weights = trilinear_weights(fraction)
    share = tl.full(ray.shape, 1.0, tl.float32) if weight is None else tl.load(weight + ray, mask=valid, other=0.0)
    for i in tl.static_range(8):
        tl.atomic_add(weight_sum + rows[i], corner_weights[i] * share, mask=valid & (rows[i] >= 0), sem="relaxed")
    for first in range(0, C, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        offsets, exist = row_offsets(ray, valid, channel, C)
        value = tl.load(features + offsets, mask=exist, other=0.0).to(tl.float32)
        for i in tl.static_range(8):
            offsets, exist = row_offsets(rows[i], valid, channel, C)
            part = (corner_weights[i] * share)[:, None] * value
            tl.atomic_add(feature_sum + offsets, part, mask=exist, sem="relaxed")


@triton.jit(do_not_specialize=["grid", "num_rays", "width"])
def voxel_scatter_backward_kernel(
    d_feature_sum,  # [V, C]
    d_weight_sum,  # [V]
    features,  # [R, C]
    depth,  # [R]
    origins,  # [R, 3]
    directions,  # [R, 3]
    weight,  # [R] or None
    by_features,  # [R, C]
    by_depth,  # [R]
    by_origins,  # [R, 3]
    by_directions,  # [R, 3]
    by_weight,  # [R]
    grid,  # Grid
    num_rays,
    width,
    WANTS_FEATURES: tl.constexpr,
    WANTS_GEOMETRY: tl.constexpr,
    WANTS_WEIGHT: tl.constexpr,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TILE_X: tl.constexpr,
):
    # What: the gradients of voxel_scatter by features, depth, origins, directions and weight.
    # Maths: q_c = d_weight_sum[c] + d_feature_sum[c] . features; d_features = weight sum_c a_c d_feature_sum[c],
    #   d_weight = sum_c a_c q_c, d_g = weight sum_c q_c grad a_c; all of the geometry's follow from d_g.
    # Gradient: this is it; the cell of a point is held fixed.
    # Mapping: as the forward: a tile of BLOCK_R rays a program, lanes along channels for the rows.
    # Memory: gathers 8 rows of d_feature_sum a ray, once; writes every gradient that is wanted, once.
    NEEDS_GAINS: tl.constexpr = WANTS_GEOMETRY or WANTS_WEIGHT
    ray, exists = tile_rays(num_rays, width, BLOCK_R, TILE_X)
    rows, fraction, t, valid = scatter_points(depth, origins, directions, grid, ray, exists)
    corner_weights = trilinear_weights(fraction)
    share = tl.full(ray.shape, 1.0, tl.float32) if weight is None else tl.load(weight + ray, mask=valid, other=0.0)
    gains = ()
    for i in tl.static_range(8):
        if NEEDS_GAINS:
            gains += (tl.load(d_weight_sum + rows[i], mask=valid & (rows[i] >= 0), other=0.0),)
        else:
            gains += (share,)
    for first in range(0, C, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        ray_offsets, ray_exist = row_offsets(ray, exists, channel, C)
        value = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        if NEEDS_GAINS:
            offsets, exist = row_offsets(ray, valid, channel, C)
            value = tl.load(features + offsets, mask=exist, other=0.0).to(tl.float32)
        total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        more = ()
        for i in tl.static_range(8):
            offsets, exist = row_offsets(rows[i], valid, channel, C)
            row = tl.load(d_feature_sum + offsets, mask=exist, other=0.0)
            if WANTS_FEATURES:
                total += (corner_weights[i] * share)[:, None] * row
            if NEEDS_GAINS:
                more += (gains[i] + tl.sum(row * value, axis=1),)
            else:
                more += (gains[i],)
        gains = more
        if WANTS_FEATURES:
            tl.store(by_features + ray_offsets, total, mask=ray_exist)
    if WANTS_WEIGHT:
        d_weight = tl.zeros_like(share)
        for i in tl.static_range(8):
            d_weight = tl.fma(corner_weights[i], gains[i], d_weight)
        tl.store(by_weight + ray, d_weight, mask=exists)
    if WANTS_GEOMETRY:
        d_fraction = trilinear_gradient(gains, fraction)
        direction = load_vector(directions, ray, valid)
        d_origin = ()
        d_direction = ()
        d_depth = tl.zeros_like(share)
        for i in tl.static_range(3):
            d_point = tl.where(valid, d_fraction[i] * share, 0.0)
            d_origin += (d_point,)
            d_direction += (d_point * t,)
            d_depth = tl.fma(d_point, direction[i], d_depth)
        store_vector(by_origins, ray, d_origin, grid.voxel_size, exists)
        store_vector(by_directions, ray, d_direction, grid.voxel_size, exists)
        tl.store(by_depth + ray, tl.div_rn(d_depth, grid.voxel_size), mask=exists)


def check_inputs(
    features: Tensor,  # [R, C]
    depth: Tensor,  # [R]
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
    weight: Tensor | None,  # [R]
) -> None:
    check_tensor("features", features, (None, None), FEATURE_TYPES)
    rays = features.shape[0]
    check_tensor("depth", depth, (rays,))
    check_tensor("origins", origins, (rays, 3))
    check_tensor("directions", directions, (rays, 3))
    if weight is not None:
        check_tensor("weight", weight, (rays,))


def voxel_scatter(
    features: Tensor,  # [R, C]
    depth: Tensor,  # [R] metres along the ray
    origins: Tensor,  # [R, 3] metres
    directions: Tensor,  # [R, 3]
    weight: Tensor | None,  # [R]
    directory: Tensor,  # [Dx, Dy, Dz] int32
    pages: Tensor,  # [P, 512] int32
    page_origin: Sequence[int],
    grid_origin: Sequence[float],
    voxel_size: float,
    image_width: int,
    num_voxels: int,
    deterministic: bool,
) -> tuple[Tensor, Tensor]:  # [V, C], [V]
    """feature_sum and weight_sum, float32, of rays that end in a grid of ``num_voxels`` lattice points.

    Sums are made by atomics, in any order: ``deterministic`` is for the caller to refuse.
    """
    sums = depth.new_zeros(num_voxels, features.shape[1]), depth.new_zeros(num_voxels)
    grid = directory, pages, page_origin, grid_origin, voxel_size
    voxel_scatter_(*sums, features, depth, origins, directions, weight, *grid, image_width, deterministic)
    return sums


def voxel_scatter_(
    feature_sum: Tensor,  # [V, C]
    weight_sum: Tensor,  # [V]
    features: Tensor,  # [R, C]
    depth: Tensor,  # [R] metres along the ray
    origins: Tensor,  # [R, 3] metres
    directions: Tensor,  # [R, 3]
    weight: Tensor | None,  # [R]
    directory: Tensor,  # [Dx, Dy, Dz] int32
    pages: Tensor,  # [P, 512] int32
    page_origin: Sequence[int],
    grid_origin: Sequence[float],
    voxel_size: float,
    image_width: int,
    deterministic: bool,
) -> None:
    """Adds to feature_sum and weight_sum, float32, in place."""
    check_inputs(features, depth, origins, directions, weight)
    rays, channels = features.shape
    check_tensor("feature_sum", feature_sum, (None, channels))
    check_tensor("weight_sum", weight_sum, (feature_sum.shape[0],))
    grid = grid_view(directory, pages, page_origin, grid_origin, voxel_size)
    if rays == 0:
        return
    work = blocks(rays, channels, image_width)
    with device_of(depth):
        voxel_scatter_forward_kernel[(work.tiles,)](
            feature_sum,
            weight_sum,
            features,
            depth,
            origins,
            directions,
            weight,
            grid,
            rays,
            work.width,
            C=channels,
            **work.sizes,
            num_warps=1,
        )


def voxel_scatter_backward(
    d_feature_sum: Tensor,  # [V, C]
    d_weight_sum: Tensor,  # [V]
    features: Tensor,  # [R, C]
    depth: Tensor,  # [R] metres along the ray
    origins: Tensor,  # [R, 3] metres
    directions: Tensor,  # [R, 3]
    weight: Tensor | None,  # [R]
    directory: Tensor,  # [Dx, Dy, Dz] int32
    pages: Tensor,  # [P, 512] int32
    page_origin: Sequence[int],
    grid_origin: Sequence[float],
    voxel_size: float,
    image_width: int,
    wants_features: bool,
    wants_geometry: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # [R, C], [R], [R, 3], [R, 3], [R]
    """Gradients by features, depth, origins, directions and weight, float32; one that is not wanted is empty."""
    check_inputs(features, depth, origins, directions, weight)
    rays, channels = features.shape
    check_tensor("d_feature_sum", d_feature_sum, (None, channels))
    check_tensor("d_weight_sum", d_weight_sum, (d_feature_sum.shape[0],))
    grid = grid_view(directory, pages, page_origin, grid_origin, voxel_size)
    geometry_rays = rays if wants_geometry else 0
    gradients = (
        depth.new_empty(rays if wants_features else 0, channels),
        depth.new_empty(geometry_rays),
        depth.new_empty(geometry_rays, 3),
        depth.new_empty(geometry_rays, 3),
        depth.new_empty(rays if wants_weight else 0),
    )
    if rays == 0 or not (wants_features or wants_geometry or wants_weight):
        return gradients
    work = blocks(rays, channels, image_width)
    with device_of(depth):
        voxel_scatter_backward_kernel[(work.tiles,)](
            d_feature_sum,
            d_weight_sum,
            features,
            depth,
            origins,
            directions,
            weight,
            *gradients,
            grid,
            rays,
            work.width,
            WANTS_FEATURES=wants_features,
            WANTS_GEOMETRY=wants_geometry,
            WANTS_WEIGHT=wants_weight,
            C=channels,
            **work.sizes,
            num_warps=1,
        )
    return gradients
