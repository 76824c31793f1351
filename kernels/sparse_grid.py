"""How kernels address the sparse grid: bricks through its two tables, corners of cells, trilinear interpolation.

``evoworld.reference.sparse_grid`` spells the tables out. Vectors are tuples ``(x, y, z)`` of blocks, one element a ray;
what belongs to the 8 corners of a cell is a tuple of 8, in the order (0, 0, 0), (0, 0, 1), ..., (1, 1, 1).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

BRICK_BITS = tl.constexpr(2)  # a brick has 4 lattice points along each axis,
PAGE_BITS = tl.constexpr(3)  # a page 8 bricks
BRICK_VOLUME = tl.constexpr(64)
PAGE_VOLUME = tl.constexpr(512)
OUTSIDE = tl.constexpr(-2)  # what the directory holds beside a page that exists: nothing here, look one page on
MAX_LATTICE = tl.constexpr(1.0e9)  # coordinates from here on belong to no grid and come near int32's end
NOWHERE = tl.constexpr(-(1 << 31))  # a coordinate that no ray is at
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


class Grid(NamedTuple):
    """What a kernel needs of a `SparseGrid`.

    Whole numbers n are passed as 4 n + 2: Triton compiles a kernel anew for one that is 1 or a multiple of 16, and a
    grid that grows would come by many of those.
    """

    directory: torch.Tensor  # [*size] int32
    pages: torch.Tensor  # [P, 512] int32
    size: tuple[int, int, int]  # 4 n + 2: of the directory, in pages
    page_origin: tuple[int, int, int]  # 4 n + 2: page coordinates of the directory's first entry
    origin: tuple[float, float, float]  # metres: world position of lattice point 0
    voxel_size: float  # metres


@triton.jit
def any_of(
    mask,  # [R] bool
):
    return tl.max(mask.to(tl.int32), axis=0) > 0


@triton.jit
def choose(
    mask,  # [R] bool
    a,  # N x [R]
    b,  # N x [R]
):
    """tl.where for tuples."""
    result = ()
    for i in tl.static_range(len(a)):
        result += (tl.where(mask, a[i], b[i]),)
    return result


@triton.jit
def same(
    a,  # 3 x [R]
    b,  # 3 x [R]
):
    return ((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2])) == 0


@triton.jit
def load_vector(
    vectors,  # [R, 3]
    ray,  # [R'] int64
    mask,  # [R'] bool
):
    return (
        tl.load(vectors + 3 * ray, mask=mask, other=0.0),
        tl.load(vectors + 3 * ray + 1, mask=mask, other=0.0),
        tl.load(vectors + 3 * ray + 2, mask=mask, other=0.0),
    )


@triton.jit
def store_vector(
    vectors,  # [R, 3]
    ray,  # [R'] int64
    values,  # 3 x [R']
    divisor,
    mask,  # [R'] bool
):
    for i in tl.static_range(3):
        tl.store(vectors + 3 * ray + i, tl.div_rn(values[i], divisor), mask=mask)


@triton.jit
def lattice_line(
    grid,  # Grid
    origin,  # 3 x [R] metres
    direction,  # 3 x [R]
):
    """(base, slope): the lattice coordinate of o + t d is t slope + base. The grid's origin leaves before t enters."""
    base = ()
    slope = ()
    for i in tl.static_range(3):
        base += (tl.div_rn(origin[i] - grid.origin[i], grid.voxel_size),)
        slope += (tl.div_rn(direction[i], grid.voxel_size),)
    return base, slope


@triton.jit
def cell_point(
    base,  # 3 x [R] lattice units
    slope,  # 3 x [R] lattice units a metre
    t,  # [R] metres
):
    """(cell, fraction): the low corner of the cell at distance t, and where in the cell the point lies."""
    cell = ()
    fraction = ()
    for i in tl.static_range(3):
        g = multiply_add(t, slope[i], base[i])
        low = tl.floor(g)
        cell += (low.to(tl.int32),)
        fraction += (g - low,)
    return cell, fraction


@triton.jit
def multiply_add(
    a,  # [R] float32
    b,  # float32
    c,  # float32
):
    """a b + c rounded once, wherever a sample's cell hangs on it. The interpreter's own tl.fma rounds twice."""
    return (a.to(tl.float64) * b + c).to(tl.float32) if INTERPRETED else tl.fma(a, b, c)


@triton.jit
def table_places(
    grid,  # Grid
    brick,  # 3 x [R] int32
):
    """(inside, slot, place), one part an axis each: is the page in the directory, where, and where in the page?"""
    inside = ()
    slot = ()
    place = ()
    for i in tl.static_range(3):
        page = (brick[i] >> PAGE_BITS) - (grid.page_origin[i] >> 2)
        inside += ((page >= 0) & (page < (grid.size[i] >> 2)),)
        page = page.to(tl.int64)
        for j in tl.static_range(i + 1, 3):
            page *= grid.size[j] >> 2
        slot += (page,)
        place += ((brick[i] & 7) << (6 - 3 * i),)
    return inside, slot, place


@triton.jit
def find_entry(
    grid,  # Grid
    brick,  # 3 x [R] int32
    mask,  # [R] bool: others read nothing
):
    """(entry, bits): a brick's index, or -1 - distance: cubes of 2^bits lattice points nearer are inactive."""
    inside, slot, place = table_places(grid, brick)
    inside = mask & inside[0] & inside[1] & inside[2]
    page = tl.load(grid.directory + (slot[0] + slot[1] + slot[2]), mask=inside, other=OUTSIDE)
    exists = page >= 0
    place = page.to(tl.int64) * PAGE_VOLUME + (place[0] | place[1] | place[2])
    entry = tl.load(grid.pages + place, mask=exists, other=OUTSIDE)
    return tl.where(exists, entry, page), tl.where(exists, BRICK_BITS, BRICK_BITS + PAGE_BITS)


@triton.jit
def find_neighbours(
    grid,  # Grid
    brick,  # 3 x [R] int32
    mask,  # [R] bool: others keep what they have
    kept,  # 8 x [R] int32
):
    """The index (negative: not allocated) of a brick and its 7 upper neighbours."""
    places = (table_places(grid, brick), table_places(grid, (brick[0] + 1, brick[1] + 1, brick[2] + 1)))
    bricks = ()
    for i in tl.static_range(8):
        inside_x, slot_x, place_x = places[i >> 2][0][0], places[i >> 2][1][0], places[i >> 2][2][0]
        inside_y, slot_y, place_y = places[(i >> 1) & 1][0][1], places[(i >> 1) & 1][1][1], places[(i >> 1) & 1][2][1]
        inside_z, slot_z, place_z = places[i & 1][0][2], places[i & 1][1][2], places[i & 1][2][2]
        inside = mask & inside_x & inside_y & inside_z
        page = tl.load(grid.directory + (slot_x + slot_y + slot_z), mask=inside, other=OUTSIDE)
        place = page.to(tl.int64) * PAGE_VOLUME + (place_x | place_y | place_z)
        entry = tl.load(grid.pages + place, mask=page >= 0, other=OUTSIDE)
        bricks += (tl.where(mask, entry, kept[i]),)
    return bricks


@triton.jit
def corner_rows(
    bricks,  # 8 x [R] int32: around the brick of the cell's low corner
    cell,  # 3 x [R] int32
    INDEX: tl.constexpr,
):
    """Value rows, of type INDEX, of the 8 corners of a cell; -1: not allocated."""
    x = cell[0] & 3
    y = cell[1] & 3
    z = cell[2] & 3
    cross_x = x == 3
    cross_y = y == 3
    cross_z = z == 3
    low = (x << 4, y << 2, z)
    high = (((x + 1) & 3) << 4, ((y + 1) & 3) << 2, (z + 1) & 3)
    rows = ()
    for i in tl.static_range(8):
        brick = bricks[0]
        if i & 1:
            brick = tl.where(cross_z, bricks[1], brick)
        if i & 2:
            upper = bricks[2]
            if i & 1:
                upper = tl.where(cross_z, bricks[3], upper)
            brick = tl.where(cross_y, upper, brick)
        if i & 4:
            upper = bricks[4]
            if i & 1:
                upper = tl.where(cross_z, bricks[5], upper)
            if i & 2:
                beyond = bricks[6]
                if i & 1:
                    beyond = tl.where(cross_z, bricks[7], beyond)
                upper = tl.where(cross_y, beyond, upper)
            brick = tl.where(cross_x, upper, brick)
        place = high[2] if i & 1 else low[2]
        place |= high[1] if i & 2 else low[1]
        place |= high[0] if i & 4 else low[0]
        rows += (tl.where(brick >= 0, brick.to(INDEX) * BRICK_VOLUME + place, -1),)
    return rows


@triton.jit
def trilinear_weights(
    fraction,  # 3 x [R]
):
    x, y, z = fraction
    x0 = 1.0 - x
    y0 = 1.0 - y
    z0 = 1.0 - z
    w00 = x0 * y0
    w01 = x0 * y
    w10 = x * y0
    w11 = x * y
    return (w00 * z0, w00 * z, w01 * z0, w01 * z, w10 * z0, w10 * z, w11 * z0, w11 * z)


@triton.jit
def trilinear(
    v,  # 8 x [R]
    fraction,  # 3 x [R]
):
    x, y, z = fraction
    v00 = tl.fma(z, v[1] - v[0], v[0])
    v01 = tl.fma(z, v[3] - v[2], v[2])
    v10 = tl.fma(z, v[5] - v[4], v[4])
    v11 = tl.fma(z, v[7] - v[6], v[6])
    v0 = tl.fma(y, v01 - v00, v00)
    v1 = tl.fma(y, v11 - v10, v10)
    return tl.fma(x, v1 - v0, v0)


@triton.jit
def trilinear_gradient(
    v,  # 8 x [R]
    fraction,  # 3 x [R]
):
    """Derivative of trilinear() by the fraction, 3 x [R]."""
    x, y, z = fraction
    z00 = v[1] - v[0]
    z01 = v[3] - v[2]
    z10 = v[5] - v[4]
    z11 = v[7] - v[6]
    v00 = tl.fma(z, z00, v[0])
    v01 = tl.fma(z, z01, v[2])
    v10 = tl.fma(z, z10, v[4])
    v11 = tl.fma(z, z11, v[6])
    y0 = v01 - v00
    y1 = v11 - v10
    z0 = tl.fma(y, z01 - z00, z00)
    z1 = tl.fma(y, z11 - z10, z10)
    return (tl.fma(y, y1, v10) - tl.fma(y, y0, v00), tl.fma(x, y1 - y0, y0), tl.fma(x, z1 - z0, z0))


@triton.jit
def row_offsets(
    row,  # [R]
    mask,  # [R] bool
    channel,  # [BLOCK_C]
    C: tl.constexpr,
):
    """(offsets, exist), [R, BLOCK_C] each: where rows of C channels stand, as far as they exist and are wanted."""
    row = tl.where(mask, row, -1)[:, None]  # the mask within the row: one thing less to hand from lane to lane
    return row.to(tl.int64) * C + channel[None, :], (row >= 0) & (channel < C)[None, :]
