"""The gradients of volume_render: the forward's walk again, front to back, without a tensor of samples."""

from __future__ import annotations

import triton
import triton.language as tl

from .absorption import absorb, gather, load_corners
from .ray_march import no_place, start_rays, tile_rays, visit
from .sparse_grid import (
    any_of,
    choose,
    corner_rows,
    row_offsets,
    same,
    store_vector,
    trilinear,
    trilinear_gradient,
    trilinear_weights,
)

NO_LIGHT = tl.constexpr(5.9604645e-8)  # 2^-24: a transmittance that float32 cannot tell from an opaque ray's


@triton.jit
def cell_dots(
    features,  # [V, C]
    d_features,  # [R, C]
    ray,  # [R'] int64
    rows,  # 8 x [R']
    entered,  # [R'] bool: others keep what they have
    mask,  # [R'] bool: of those, the cells that matter; 0 for others
    kept,  # 8 x [R']
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """d_features . F_c of the corners of cells that rays enter."""
    dots = ()
    for i in tl.static_range(8):
        dots += (tl.where(entered, 0.0, kept[i]),)
    for first in range(0, C, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        offsets, exist = row_offsets(ray, mask, channel, C)
        upstream = tl.load(d_features + offsets, mask=exist, other=0.0)  # again: registers are dearer than the cache
        more = ()
        for i in tl.static_range(8):
            offsets, exist = row_offsets(rows[i], mask, channel, C)
            value = tl.load(features + offsets, mask=exist, other=0.0)
            more += (dots[i] + tl.sum(upstream * value.to(tl.float32), axis=1),)
        dots = more
    return dots


@triton.jit
def add_densities(
    by_density,  # [V]
    rows,  # 8 x [R]
    d_densities,  # 8 x [R]
    mask,  # [R] bool
):
    """Adds the density gradients of cells that rays leave to their rows."""
    for i in tl.static_range(8):
        tl.atomic_add(by_density + rows[i], d_densities[i], mask=mask & (rows[i] >= 0), sem="relaxed")


@triton.jit
def add_features(
    by_features,  # [V, C]
    d_features,  # [R, C]
    ray,  # [R'] int64
    rows,  # 8 x [R']
    weights,  # 8 x [R'] W_c
    mask,  # [R'] bool
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Adds W_c d_features to the rows of cells that rays leave."""
    for first in range(0, C, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        offsets, exist = row_offsets(ray, mask, channel, C)
        upstream = tl.load(d_features + offsets, mask=exist, other=0.0)
        for i in tl.static_range(8):
            offsets, exist = row_offsets(rows[i], mask & (weights[i] != 0.0), channel, C)
            tl.atomic_add(by_features + offsets, weights[i][:, None] * upstream, mask=exist, sem="relaxed")


@triton.jit
def not_all_zero(
    values,  # 8 x [R]
):
    found = values[0] != 0.0
    for i in tl.static_range(1, 8):
        found = found | (values[i] != 0.0)
    return found


@triton.jit
def add_position(
    d_base,  # 3 x [R]
    d_slope,  # 3 x [R]
    t,  # [R]
    d_sigma,  # [R]
    by_sigma,  # 3 x [R]: sigma's derivative by the sample's place
    weight,  # [R]
    by_dot,  # 3 x [R]: d_features . f's derivative by the sample's place
):
    """Adds a sample's part to the gradients of its ray's line, g = t slope + base."""
    base = ()
    slope = ()
    for i in tl.static_range(3):
        d_g = tl.fma(d_sigma, by_sigma[i], weight * by_dot[i])
        base += (d_base[i] + d_g,)
        slope += (tl.fma(t, d_g, d_slope[i]),)
    return base, slope


@triton.jit(do_not_specialize=["grid", "march", "num_rays", "width"])
def volume_render_backward_kernel(
    d_features,  # [R, C]
    d_depth,  # [R]
    d_opacity,  # [R]
    out_features,  # [R, C]
    out_depth,  # [R]
    out_opacity,  # [R]
    features,  # [V, C]
    density,  # [V]
    origins,  # [R, 3]
    directions,  # [R, 3]
    jitter,  # [R] or None
    by_features,  # [V, C]
    by_density,  # [V]
    by_origins,  # [R, 3]
    by_directions,  # [R, 3]
    grid,  # Grid
    march,  # March
    num_rays,
    width,
    WANTS_FEATURES: tl.constexpr,
    WANTS_DENSITY: tl.constexpr,
    WANTS_RAYS: tl.constexpr,
    C: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TILE_X: tl.constexpr,
):
    # What: the gradients of volume_render by features, density, origins and directions.
    # Maths: g_k = d_features . f_k + d_depth t_k + d_opacity; d_sigma_k = step (T_{k+1} g_k - sum_{j>k} w_j g_j), the
    #   suffix being total - prefix in double; d_density[c] += a_c d_sigma_k, d_features[c] += W_c d_features.
    # Gradient: this is it; jitter gets none, and which samples are used is held fixed.
    # Mapping: a tile of BLOCK_R rays in lockstep, front to back as the forward, all channels of a ray in its program.
    # Memory: reads what the forward reads; atomic adds to 8 rows where a ray leaves a cell; rays' gradients once.
    NEEDS_GAIN: tl.constexpr = WANTS_DENSITY or WANTS_RAYS
    ray, exists = tile_rays(num_rays, width, BLOCK_R, TILE_X)
    rays, k, alive = start_rays(origins, directions, jitter, grid, march, ray, exists)
    by_t = tl.load(d_depth + ray, mask=exists, other=0.0)
    by_weight = tl.load(d_opacity + ray, mask=exists, other=0.0)
    remaining = tl.load(out_depth + ray, mask=exists, other=0.0).to(tl.float64) * by_t
    remaining += tl.load(out_opacity + ray, mask=exists, other=0.0).to(tl.float64) * by_weight
    for first in range(0, C, BLOCK_C):
        offsets, exist = row_offsets(ray, exists, first + tl.arange(0, BLOCK_C), C)
        out = tl.load(out_features + offsets, mask=exist, other=0.0)
        remaining += tl.sum(out.to(tl.float64) * tl.load(d_features + offsets, mask=exist, other=0.0), axis=1)

    brick = no_place(k)
    cell = no_place(k)
    zero = tl.zeros_like(k)
    densities = (zero, zero, zero, zero, zero, zero, zero, zero)
    weights = densities
    dots = densities
    d_densities = densities
    d_base = (zero, zero, zero)
    d_slope = d_base
    none = tl.full(k.shape, -1, tl.int32)
    bricks = (none, none, none, none, none, none, none, none)
    rows = corner_rows(bricks, cell, INDEX)
    touched = exists & ~exists
    transmittance = zero + 1.0
    dark = tl.maximum(zero + march.min_transmittance, NO_LIGHT)
    while any_of(alive):
        t, at, fraction, here, k, alive, brick, bricks = visit(rays, grid, march, k, alive, brick, bricks)
        entered = here & ~same(at, cell)
        if any_of(entered):
            left = entered & touched
            if any_of(left):
                if WANTS_DENSITY:
                    add_densities(by_density, rows, d_densities, left)
                if WANTS_FEATURES:
                    add_features(by_features, d_features, ray, rows, weights, left, C, BLOCK_C)
            cell = choose(entered, at, cell)
            rows = choose(entered, corner_rows(bricks, at, INDEX), rows)
            densities = load_corners(density, rows, entered, densities)
            if NEEDS_GAIN:
                matters = entered
                if not WANTS_DENSITY:
                    matters = entered & not_all_zero(densities)
                dots = cell_dots(features, d_features, ray, rows, entered, matters, dots, C, BLOCK_C)
            touched = touched & ~entered
        sigma = trilinear(densities, fraction)
        corner_weights = trilinear_weights(fraction)
        dense = here & (sigma != 0.0)
        weight, transmittance = absorb(transmittance, sigma, march.step, dense)
        weights = gather(weights, weight, corner_weights, entered)
        touched = touched | dense
        if NEEDS_GAIN:
            gain = trilinear(dots, fraction) + tl.fma(by_t, t, by_weight)
            remaining -= weight.to(tl.float64) * gain
            # What is left of a float32 total when the light is gone is rounding, which a steep density would multiply.
            remaining = tl.where(transmittance < dark, 0.0, remaining)
            d_sigma = march.step * (transmittance.to(tl.float64) * gain - remaining).to(tl.float32)
            d_sigma = tl.where(here, d_sigma, 0.0)
            if WANTS_DENSITY:
                d_densities = gather(d_densities, d_sigma, corner_weights, entered)
                touched = touched | here
            if WANTS_RAYS:
                by_sigma = trilinear_gradient(densities, fraction)
                by_dot = trilinear_gradient(dots, fraction)
                d_base, d_slope = add_position(d_base, d_slope, t, d_sigma, by_sigma, weight, by_dot)
        alive = alive & ~(transmittance < march.min_transmittance)
    if WANTS_DENSITY:
        add_densities(by_density, rows, d_densities, touched)
    if WANTS_FEATURES:
        add_features(by_features, d_features, ray, rows, weights, touched, C, BLOCK_C)
    if WANTS_RAYS:
        store_vector(by_origins, ray, d_base, grid.voxel_size, exists)
        store_vector(by_directions, ray, d_slope, grid.voxel_size, exists)
