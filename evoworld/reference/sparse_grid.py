"""The sparse grid's table, how points address it, and the two steps that grow it, in plain PyTorch.

This is the specification of the native kernels.

The table finds a brick with two loads. ``directory`` [Dx, Dy, Dz] covers a box of pages from ``page_origin`` on;
an entry that is not negative is a row of ``pages`` [P, 512], where an entry that is not negative is a brick's index.
A negative entry ``e`` says that nothing is allocated there, and that the nearest page that exists (in the directory)
or the nearest active brick (in a page) is ``-1 - e`` away: Chebyshev distance, at most `MAX_DISTANCE`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

EDGE = 4  # lattice points a brick along each axis: half the memory and half the samples per ray of 8
EDGE_BITS = 2  # EDGE = 1 << EDGE_BITS
BRICK_VOLUME = EDGE**3  # value rows a brick
PAGE_EDGE = 8  # bricks a page along each axis
PAGE_BITS = 3  # PAGE_EDGE = 1 << PAGE_BITS
PAGE_VOLUME = PAGE_EDGE**3
MAX_DISTANCE = 8  # distances saturate here: one page, so that a brick's distance depends on the 26 pages around its own
MAX_LATTICE = 1.0e9  # lattice coordinates from here on would come near int32's end: treated as not finite
EMPTY = -1 - MAX_DISTANCE  # entry of a brick or page with nothing near it

_CHUNK_PAGES = 128  # pages whose neighbourhoods (24^3 bytes each, a few copies) are held at once


def corner_offsets(device: torch.device | str) -> Tensor:
    """The 8 corners of a unit cell, ``(0, 0, 0), (0, 0, 1), ..., (1, 1, 1)``, as ``[8, 3]`` int32."""
    bits = torch.arange(8, device=device, dtype=torch.int32)
    return torch.stack([bits >> 2, (bits >> 1) & 1, bits & 1], dim=-1)


def chebyshev_distance(
    occupied: Tensor,  # [..., X, Y, Z] bool
) -> Tensor:  # [..., X, Y, Z] int32
    """Distance of every element to the nearest occupied one, ``max(|dx|, |dy|, |dz|)``, at most `MAX_DISTANCE`.

    >>> chebyshev_distance(torch.tensor([[[True, False, False]]])).tolist()
    [[[0, 1, 2]]]
    """
    if occupied.device.type != "cpu":
        return _chebyshev_distance_by_pooling(occupied)
    reached = occupied.to(torch.uint8)
    times_reached = reached.clone()
    for _ in range(MAX_DISTANCE - 1):
        for axis in (-3, -2, -1):
            grown, shorter = reached.clone(), reached.shape[axis] - 1
            grown.narrow(axis, 1, shorter).bitwise_or_(reached.narrow(axis, 0, shorter))
            grown.narrow(axis, 0, shorter).bitwise_or_(reached.narrow(axis, 1, shorter))
            reached = grown
        times_reached += reached
    return MAX_DISTANCE - times_reached.to(torch.int32)


def _chebyshev_distance_by_pooling(
    occupied: Tensor,  # [..., X, Y, Z] bool
) -> Tensor:  # [..., X, Y, Z] int32
    """The same in a quarter of the operations, each of them dearer: what a GPU wants."""
    reached = occupied.reshape(-1, *occupied.shape[-3:]).float()
    times_reached = reached
    for _ in range(MAX_DISTANCE - 1):
        reached = F.max_pool3d(reached, 3, stride=1, padding=1)
        times_reached = times_reached + reached
    return (MAX_DISTANCE - times_reached).to(torch.int32).view(occupied.shape)


def find_pages(
    page_coordinates: Tensor,  # [..., 3] int
    directory: Tensor,  # [Dx, Dy, Dz] int32
    page_origin: Sequence[int],
) -> Tensor:  # [...] int64
    """The directory's entry of each page: its index, or a negative number; `EMPTY` outside the directory."""
    shape = torch.tensor(directory.shape, device=directory.device)
    place = page_coordinates.long() - torch.tensor(page_origin, device=directory.device)
    inside = ((place >= 0) & (place < shape)).all(-1)
    x, y, z = place.clamp(min=0).minimum(shape - 1).unbind(-1)
    return torch.where(inside, directory[x, y, z].long(), EMPTY)


def find_bricks(
    bricks: Tensor,  # [..., 3] int
    directory: Tensor,  # [Dx, Dy, Dz] int32
    pages: Tensor,  # [P, 512] int32
    page_origin: Sequence[int],
) -> Tensor:  # [...] int64
    """The index of each brick, or -1 where it is not allocated."""
    if pages.shape[0] == 0:
        return torch.full(bricks.shape[:-1], -1, dtype=torch.int64, device=bricks.device)
    page = find_pages(bricks >> PAGE_BITS, directory, page_origin)
    entry = pages[page.clamp(min=0), index_in_page(bricks)].long()
    return torch.where(page >= 0, entry, -1).clamp(min=-1)


def find_rows(
    lattice: Tensor,  # [..., 3] int
    directory: Tensor,  # [Dx, Dy, Dz] int32
    pages: Tensor,  # [P, 512] int32
    page_origin: Sequence[int],
) -> Tensor:  # [...] int64
    """The value row of each lattice point, or -1 where its brick is not allocated."""
    brick = find_bricks(lattice >> EDGE_BITS, directory, pages, page_origin)
    x, y, z = (lattice & (EDGE - 1)).long().unbind(-1)
    return torch.where(brick >= 0, brick * BRICK_VOLUME + (x * EDGE + y) * EDGE + z, -1)


def index_in_page(
    bricks: Tensor,  # [..., 3] int
) -> Tensor:  # [...] int64
    """Where in its page's row of 512 entries a brick stands."""
    x, y, z = (bricks & (PAGE_EDGE - 1)).long().unbind(-1)
    return (x * PAGE_EDGE + y) * PAGE_EDGE + z


def lattice_coordinates(
    origins: Tensor,  # [..., 3] metres
    directions: Tensor,  # [..., 3]
    t: Tensor,  # [...] metres
    grid,  # a SparseGrid
) -> Tensor:  # [..., 3]
    """``((o - origin) + t d) / voxel_size`` as ``t * slope + base``, a fused multiply-add where the device has one.

    Taking the grid's origin away before the ray is followed keeps what is near the origin exact; from 300 m away
    ``(o + t d) - origin`` is four times worse.
    """
    voxel_size = origins.new_tensor(grid.voxel_size)  # a tensor: CUDA multiplies by the reciprocal of a number
    base = (origins - origins.new_tensor(grid.origin)) / voxel_size
    return torch.addcmul(base, t[..., None], directions / voxel_size)


def cell_corners(
    coordinates: Tensor,  # [..., 3] lattice units
    grid,  # a SparseGrid
) -> tuple[Tensor, Tensor]:  # [..., 8] int64, [..., 8]
    """Value rows (-1: not allocated) and trilinear weights of the 8 corners of each point's cell.

    Differentiable in the coordinates, the cell being held fixed. Points that are not finite or too far have no rows.
    """
    valid = (coordinates.abs() < MAX_LATTICE).all(-1, keepdim=True)
    coordinates = torch.where(valid, coordinates, 0)
    low = coordinates.detach().floor()
    fraction = (coordinates - low)[..., None, :]
    offsets = corner_offsets(coordinates.device)
    rows = find_rows(low.to(torch.int32)[..., None, :] + offsets, grid.directory, grid.pages, grid.page_origin)
    x, y, z = torch.where(offsets.bool(), fraction, 1 - fraction).unbind(-1)
    return torch.where(valid, rows, -1), x * y * z


def missing_bricks(
    points: Tensor,  # [P, 3] float32, metres
    origin: Sequence[float],
    voxel_size: float,
    directory: Tensor,  # [Dx, Dy, Dz] int32
    pages: Tensor,  # [P, 512] int32
    page_origin: Sequence[int],
) -> Tensor:  # [K, 3] int32
    """Bricks that hold a corner of the cell of some point and are not allocated, each once, sorted by (x, y, z).

    The cell of a point is ``floor((point - origin) / voxel_size)``, rounded to the points' precision after either
    operation. Points that are not finite, or `MAX_LATTICE` voxels or more from the origin, are ignored.
    """
    g = (points - points.new_tensor(origin)) / points.new_tensor(voxel_size)
    cell = g[(g.abs() < MAX_LATTICE).all(-1)].floor().to(torch.int32)
    low_and_high = torch.cat([cell >> EDGE_BITS, (cell + 1) >> EDGE_BITS], dim=-1).unique(dim=0)
    low, high = low_and_high[:, None, :3], low_and_high[:, None, 3:]
    bricks = torch.where(corner_offsets(points.device).bool(), high, low).reshape(-1, 3)
    return bricks[find_bricks(bricks, directory, pages, page_origin) < 0].unique(dim=0)


def insert_bricks(
    directory: Tensor,  # [Dx, Dy, Dz] int32
    pages: Tensor,  # [P, 512] int32
    page_origin: Sequence[int],
    bricks: Tensor,  # [K, 3] int32
    first_index: int,
) -> None:
    """Enters bricks into ``pages`` in place, indices from ``first_index`` on, and makes all distances exact again.

    A brick is active when any of the 8 bricks ``b + {0, 1}^3`` is allocated: a cell whose low corner lies in ``b``
    reads lattice points of those. The pages of all bricks that become active must exist; they may be fresh (`EMPTY`
    all over, whatever is active around them). ``directory`` is only read.
    """
    if bricks.shape[0] == 0:
        return
    page = find_pages(bricks >> PAGE_BITS, directory, page_origin)
    index = torch.arange(first_index, first_index + bricks.shape[0], dtype=torch.int32, device=bricks.device)
    pages[page, index_in_page(bricks)] = index

    active = (bricks[:, None] - corner_offsets(bricks.device)).reshape(-1, 3)
    page = find_pages(active >> PAGE_BITS, directory, page_origin)
    place = index_in_page(active)
    pages[page, place] = pages[page, place].clamp(min=-1)

    around = torch.cartesian_prod(*[torch.arange(-1, 2, device=bricks.device)] * 3)  # 27 neighbours of a page
    touched = (active >> PAGE_BITS).unique(dim=0)
    affected = (touched[:, None] + around).reshape(-1, 3).unique(dim=0)
    affected = affected[find_pages(affected, directory, page_origin) >= 0]
    updates = [_exact_entries(directory, pages, page_origin, some, around) for some in affected.split(_CHUNK_PAGES)]
    pages[find_pages(affected, directory, page_origin)] = torch.cat(updates)


def _exact_entries(
    directory: Tensor,  # [Dx, Dy, Dz] int32
    pages: Tensor,  # [P, 512] int32
    page_origin: Sequence[int],
    page_coordinates: Tensor,  # [A, 3] int
    around: Tensor,  # [27, 3] int
) -> Tensor:  # [A, 512] int32
    """The entries of some pages with their distances computed anew from what is active in them and around them."""
    neighbour = find_pages(page_coordinates[:, None] + around, directory, page_origin)  # [A, 27]
    active = (pages[neighbour.clamp(min=0)] >= -1) & (neighbour >= 0)[..., None]
    active = active.unflatten(-1, (PAGE_EDGE,) * 3).unflatten(1, (3, 3, 3)).permute(0, 1, 4, 2, 5, 3, 6)
    distance = chebyshev_distance(active.reshape(-1, *(3 * PAGE_EDGE,) * 3))
    inner = slice(PAGE_EDGE, 2 * PAGE_EDGE)
    entry = pages[neighbour[:, 13]]  # 13: the page itself, offset (0, 0, 0)
    return torch.where(entry >= 0, entry, -1 - distance[:, inner, inner, inner].flatten(1))
