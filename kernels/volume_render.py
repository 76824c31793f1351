"""volume_render: one program renders a block of rays front to back, each with its own sample number."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .absorption import absorb, gather, load_corners
from .launch import FEATURE_TYPES, blocks, check_tensor, device_of, grid_view, index_type, single
from .ray_march import March, no_place, start_rays, tile_rays, visit
from .sparse_grid import (
    any_of,
    choose,
    corner_rows,
    row_offsets,
    same,
    trilinear,
    trilinear_weights,
)
from .volume_render_backward import volume_render_backward_kernel


@triton.jit
def add_cell(
    total,  # [R, BLOCK_C]
    features,  # [V, C]
    rows,  # 8 x [R] int64
    weights,  # 8 x [R]
    mask,  # [R] bool
    channel,  # [BLOCK_C]
    C: tl.constexpr,
):
    """total + sum_c W_c F_c over the corners that exist."""
    for i in tl.static_range(8):
        offsets, exist = row_offsets(rows[i], mask, channel, C)
        value = tl.load(features + offsets, mask=exist, other=0.0)
        total += weights[i][:, None] * value.to(tl.float32)
    return total


@triton.jit(do_not_specialize=["grid", "march", "num_rays", "width"])
def volume_render_forward_kernel(
    features,  # [V, C]
    density,  # [V]
    origins,  # [R, 3]
    directions,  # [R, 3]
    jitter,  # [R] or None
    out_features,  # [R, C]
    out_depth,  # [R]
    out_opacity,  # [R]
    grid,  # Grid
    march,  # March
    num_rays,
    width,
    C: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TILE_X: tl.constexpr,
):
    # What: features, depth and opacity that each ray gathers from a sparse voxel grid.
    # Maths: w_k = T_k alpha_k, alpha_k = 1 - exp(-sigma_k step); sums of w_k f_k, w_k t_k, w_k; f is trilinear, so a
    #   cell's samples only add to W_c = sum_k w_k a_c(k) and the rows are read once: features += sum_c W_c F_c.
    # Gradient: volume_render_backward_kernel recomputes front to back from the outputs.
    # Mapping: axis 0, a tile of BLOCK_R rays in lockstep, each at its own sample; axis 1, blocks of BLOCK_C channels.
    # Memory: tables by brick, 8 densities and 8 rows of features by cell, all gathered; outputs written once.
    ray, exists = tile_rays(num_rays, width, BLOCK_R, TILE_X)
    rays, k, alive = start_rays(origins, directions, jitter, grid, march, ray, exists)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    brick = no_place(k)
    cell = no_place(k)
    zero = tl.zeros_like(k)
    densities = (zero, zero, zero, zero, zero, zero, zero, zero)
    weights = densities
    none = tl.full(k.shape, -1, tl.int32)
    bricks = (none, none, none, none, none, none, none, none)
    rows = corner_rows(bricks, cell, INDEX)
    touched = exists & ~exists
    transmittance = zero + 1.0
    depth = zero
    opacity = zero
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    while any_of(alive):
        t, at, fraction, here, k, alive, brick, bricks = visit(rays, grid, march, k, alive, brick, bricks)
        entered = here & ~same(at, cell)
        if any_of(entered):
            left = entered & touched
            if any_of(left):
                total = add_cell(total, features, rows, weights, left, channel, C)
            cell = choose(entered, at, cell)
            rows = choose(entered, corner_rows(bricks, at, INDEX), rows)
            densities = load_corners(density, rows, entered, densities)
            touched = touched & ~entered
        sigma = trilinear(densities, fraction)
        dense = here & (sigma != 0.0)
        weight, transmittance = absorb(transmittance, sigma, march.step, dense)
        weights = gather(weights, weight, trilinear_weights(fraction), entered)
        depth = tl.fma(weight, t, depth)
        opacity += weight
        touched = touched | dense
        alive = alive & ~(transmittance < march.min_transmittance)
    total = add_cell(total, features, rows, weights, touched, channel, C)
    offsets, exist = row_offsets(ray, exists, channel, C)
    tl.store(out_features + offsets, total, mask=exist)
    first = exists & (tl.program_id(1) == 0)
    tl.store(out_depth + ray, depth, mask=first)
    tl.store(out_opacity + ray, opacity, mask=first)


def march_params(near: float, far: float, step: float, min_transmittance: float) -> March:
    step = single(step)
    return March(single(near), single(far), step, single(1.0 / step), single(min_transmittance))


def check_inputs(
    features: Tensor,  # [V, C]
    density: Tensor,  # [V]
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
    jitter: Tensor | None,  # [R]
) -> None:
    check_tensor("features", features, (None, None), FEATURE_TYPES)
    check_tensor("density", density, (features.shape[0],))
    check_tensor("origins", origins, (None, 3))
    check_tensor("directions", directions, (origins.shape[0], 3))
    if jitter is not None:
        check_tensor("jitter", jitter, (origins.shape[0],))


def volume_render(
    features: Tensor,  # [V, C]
    density: Tensor,  # [V] 1/m
    origins: Tensor,  # [R, 3] metres
    directions: Tensor,  # [R, 3]
    jitter: Tensor | None,  # [R] in steps
    directory: Tensor,  # [Dx, Dy, Dz] int32
    pages: Tensor,  # [P, 512] int32
    page_origin: Sequence[int],
    grid_origin: Sequence[float],
    voxel_size: float,
    near: float,
    far: float,
    step: float,
    min_transmittance: float,
    image_width: int,
) -> tuple[Tensor, Tensor, Tensor]:  # [R, C], [R], [R]
    """Features, depth and opacity of each ray, float32."""
    check_inputs(features, density, origins, directions, jitter)
    rays, channels = origins.shape[0], features.shape[1]
    outputs = density.new_empty(rays, channels), density.new_empty(rays), density.new_empty(rays)
    if rays == 0:
        return outputs
    work = blocks(rays, channels, image_width, wide=True)
    grid = grid_view(directory, pages, page_origin, grid_origin, voxel_size)
    with device_of(density):
        volume_render_forward_kernel[work.tiles, work.chunks](
            features,
            density,
            origins,
            directions,
            jitter,
            *outputs,
            grid,
            march_params(near, far, step, min_transmittance),
            rays,
            work.width,
            C=channels,
            INDEX=index_type(features.shape[0]),
            **work.sizes,
            num_warps=1,
        )
    return outputs


def volume_render_backward(
    d_features: Tensor,  # [R, C]
    d_depth: Tensor,  # [R]
    d_opacity: Tensor,  # [R]
    out_features: Tensor,  # [R, C]
    out_depth: Tensor,  # [R]
    out_opacity: Tensor,  # [R]
    features: Tensor,  # [V, C]
    density: Tensor,  # [V] 1/m
    origins: Tensor,  # [R, 3] metres
    directions: Tensor,  # [R, 3]
    jitter: Tensor | None,  # [R] in steps
    directory: Tensor,  # [Dx, Dy, Dz] int32
    pages: Tensor,  # [P, 512] int32
    page_origin: Sequence[int],
    grid_origin: Sequence[float],
    voxel_size: float,
    near: float,
    far: float,
    step: float,
    min_transmittance: float,
    image_width: int,
    wants_features: bool,
    wants_density: bool,
    wants_rays: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [V, C], [V], [R, 3], [R, 3]
    """Gradients by features, density, origins and directions, float32; one that is not wanted is empty.

    Rows are added to by atomics, in any order: ``deterministic`` is for the caller to refuse.
    """
    check_inputs(features, density, origins, directions, jitter)
    rays, channels = origins.shape[0], features.shape[1]
    for name, tensor, shape in (
        ("d_features", d_features, (rays, channels)),
        ("d_depth", d_depth, (rays,)),
        ("d_opacity", d_opacity, (rays,)),
        ("out_features", out_features, (rays, channels)),
        ("out_depth", out_depth, (rays,)),
        ("out_opacity", out_opacity, (rays,)),
    ):
        check_tensor(name, tensor, shape)
    gradients = (
        density.new_zeros(features.shape[0] if wants_features else 0, channels),
        density.new_zeros(density.shape[0] if wants_density else 0),
        density.new_empty(rays if wants_rays else 0, 3),
        density.new_empty(rays if wants_rays else 0, 3),
    )
    if rays == 0 or not (wants_features or wants_density or wants_rays):
        return gradients
    work = blocks(rays, channels, image_width)
    grid = grid_view(directory, pages, page_origin, grid_origin, voxel_size)
    with device_of(density):
        volume_render_backward_kernel[(work.tiles,)](
            d_features,
            d_depth,
            d_opacity,
            out_features,
            out_depth,
            out_opacity,
            features,
            density,
            origins,
            directions,
            jitter,
            *gradients,
            grid,
            march_params(near, far, step, min_transmittance),
            rays,
            work.width,
            WANTS_FEATURES=wants_features,
            WANTS_DENSITY=wants_density,
            WANTS_RAYS=wants_rays,
            C=channels,
            INDEX=index_type(features.shape[0]),
            **work.sizes,
            num_warps=1,
        )
    return gradients
