"""Walks the samples t_k = near + (k + jitter) step of a block of rays through the active bricks of a sparse grid.

Each ray has its own k. Skipping moves k, never a sample: each t_k and its lattice coordinate come from the closed form,
so the samples that are visited are those of a walk that skips nothing. Leaps are shortened by a margin above their
rounding error.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .sparse_grid import (
    BRICK_BITS,
    MAX_LATTICE,
    NOWHERE,
    any_of,
    cell_point,
    choose,
    find_entry,
    find_neighbours,
    lattice_line,
    load_vector,
    multiply_add,
    same,
)

MAX_SAMPLES = tl.constexpr(16777216.0)  # 2^24: k is a float32, in which every smaller whole number is exact
SLAB_SLACK = tl.constexpr(1.0e-3)  # relative, against the rounding of distances to the directory's box
MIN_SLOPE = tl.constexpr(1.0e-30)  # lattice units a metre: a smaller slope leads nowhere, and its inverse overflows
MID_STEP = tl.constexpr(0.5)  # where a sample lies within its step when no jitter is given


class March(NamedTuple):
    """Where samples lie, rounded to float32."""

    near: float  # metres
    far: float  # metres: samples at t >= far do not exist
    step: float  # metres
    inverse_step: float
    min_transmittance: float  # a ray ends before the first sample whose transmittance is below this; 0: never


class Rays(NamedTuple):
    """A block of rays, [R] each."""

    base: tuple  # lattice units
    slope: tuple  # lattice units a metre
    inverse: tuple  # metres a lattice unit; 0 for a ray parallel to an axis' planes
    jitter: tl.tensor  # in steps
    last: tl.tensor  # k of the sample after the last one
    end: tl.tensor  # metres: no sample at or beyond it


@triton.jit
def tile_rays(
    num_rays,
    width,
    BLOCK_R: tl.constexpr,
    TILE_X: tl.constexpr,
):
    """(ray, exists): this program's BLOCK_R rays, a tile TILE_X wide of an image whose rows hold ``width`` rays."""
    tiles_x = tl.cdiv(width, TILE_X)
    tile = tl.program_id(0)
    lane = tl.arange(0, BLOCK_R)
    x = (tile % tiles_x) * TILE_X + lane % TILE_X
    y = (tile // tiles_x) * (BLOCK_R // TILE_X) + lane // TILE_X
    ray = y.to(tl.int64) * width + x
    return ray, (x < width) & (ray < num_rays)


@triton.jit
def start_rays(
    origins,  # [R, 3]
    directions,  # [R, 3]
    jitter,  # [R] or None
    grid,  # Grid
    march,  # March
    ray,  # [R'] int64
    exists,  # [R'] bool
):
    """(rays, k, alive): the rays, the first sample of each inside the directory's box, and whether there is one.

    One spare sample on either side covers rounding.
    """
    base, slope = lattice_line(grid, load_vector(origins, ray, exists), load_vector(directions, ray, exists))
    if jitter is not None:
        offset = tl.load(jitter + ray, mask=exists, other=0.0)
    else:
        offset = tl.full(ray.shape, MID_STEP, tl.float32)
    valid = exists
    for i in tl.static_range(3):
        valid = valid & (tl.abs(base[i]) < MAX_LATTICE) & (tl.abs(slope[i]) < MAX_LATTICE)
    nowhere = (tl.zeros_like(offset), tl.zeros_like(offset), tl.zeros_like(offset))
    base = choose(valid, base, nowhere)
    slope = choose(valid, slope, nowhere)

    enter = tl.zeros_like(offset) + march.near
    leave = tl.zeros_like(offset) + march.far
    end = leave
    inverse = ()
    for i in tl.static_range(3):
        low = grid.page_origin[i] >> 2
        first = (low * 32).to(tl.float32)
        last = ((low + (grid.size[i] >> 2)) * 32).to(tl.float32)
        parallel = tl.abs(slope[i]) < MIN_SLOPE
        valid = valid & (~parallel | ((base[i] >= first) & (base[i] < last)))
        towards = tl.div_rn(1.0, tl.where(parallel, 1.0, slope[i]))
        a = (first - base[i]) * towards
        b = (last - base[i]) * towards
        enter = tl.where(parallel, enter, tl.maximum(enter, tl.minimum(a, b)))
        leave = tl.where(parallel, leave, tl.minimum(leave, tl.maximum(a, b)))
        end = tl.where(parallel, end, tl.minimum(end, tl.abs(towards) * MAX_LATTICE))
        inverse += (tl.where(parallel, 0.0, towards),)
    valid = valid & (enter <= leave + tl.abs(leave) * SLAB_SLACK)
    first = tl.floor((enter - march.near) * march.inverse_step * (1.0 - SLAB_SLACK) - offset) - 1.0
    last = tl.ceil((leave - march.near) * march.inverse_step * (1.0 + SLAB_SLACK) - offset) + 2.0
    k = tl.maximum(first, 0.0)
    last = tl.minimum(tl.maximum(last, 0.0), MAX_SAMPLES)
    return Rays(base, slope, inverse, offset, last, end), k, valid & (k < last)


@triton.jit
def sample_at(
    rays,  # Rays
    march,  # March
    k,  # [R]
    alive,  # [R] bool
):
    """(t, cell, fraction, alive): sample k, and whether the ray has it. Those without one stay at t = 0."""
    t = multiply_add(k + rays.jitter, march.step, march.near)
    alive = alive & (k < rays.last) & (t < rays.end)
    t = tl.where(alive, t, 0.0)
    cell, fraction = cell_point(rays.base, rays.slope, t)
    return t, cell, fraction, alive


@triton.jit
def leave_inactive(
    rays,  # Rays
    cell,  # 3 x [R] int32
    distance,  # [R] int32
    bits,  # [R] int32
):
    """Distance, metres, up to which a ray meets nothing: every unit of 2^bits closer than ``distance`` is inactive."""
    # Lattice coordinates carry an error of a few units in the last place of base and of the planes.
    margin = 0.01 + 1.0e-6 * (tl.abs(rays.base[0]) + tl.abs(rays.base[1]) + tl.abs(rays.base[2]))
    leave = rays.end
    for i in tl.static_range(3):
        inverse = rays.inverse[i]
        up = inverse > 0.0
        plane = (cell[i] >> bits) + tl.where(up, distance, 1 - distance)
        inside = (plane << bits).to(tl.float32) - tl.where(up, margin, -margin)
        leave = tl.where(inverse == 0.0, leave, tl.minimum(leave, (inside - rays.base[i]) * inverse))
    return leave


@triton.jit
def visit(
    rays,  # Rays
    grid,  # Grid
    march,  # March
    k,  # [R]
    alive,  # [R] bool
    brick,  # 3 x [R] int32: the active brick that each ray is in
    bricks,  # 8 x [R] int32: it and its upper neighbours
):
    """Looks where sample k of each ray lies. In the open, a ray leaps; all others move on by one.

    Returns (t, cell, fraction, here, next k, alive, brick, bricks): ``here`` where the sample lies in an active brick.
    A leap takes its ray one turn, as a sample does: nobody waits for a ray that crosses empty space.
    """
    t, cell, fraction, alive = sample_at(rays, march, k, alive)
    at = (cell[0] >> BRICK_BITS, cell[1] >> BRICK_BITS, cell[2] >> BRICK_BITS)
    here = alive & same(at, brick)
    searching = alive & ~here
    k += 1.0
    if any_of(searching):
        entry, bits = find_entry(grid, at, searching)
        entered = searching & (entry >= -1)  # allocated, or next to an upper neighbour that is
        if any_of(entered):
            bricks = find_neighbours(grid, at, entered, bricks)
        brick = choose(entered, at, brick)
        here = here | entered
        target = (leave_inactive(rays, cell, -1 - entry, bits) - march.near) * march.inverse_step - rays.jitter
        # The sample at ceil(target) is the first one out; a target within rounding of it counts as before it.
        safe = tl.ceil(target - (1.0e-3 + 1.0e-6 * tl.abs(target)))
        k = tl.where(here, k, tl.maximum(k, safe))
    return t, cell, fraction, here, k, alive, brick, bricks


@triton.jit
def no_place(
    k,  # [R]
):
    """A brick or cell, 3 x [R] int32, that no sample lies in."""
    nowhere = tl.full(k.shape, NOWHERE, tl.int32)
    return (nowhere, nowhere, nowhere)
