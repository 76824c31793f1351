"""A grid of lattice points that exist only where something was observed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from evoworld.reference.sparse_grid import (
    BRICK_VOLUME,
    EDGE,
    EMPTY,
    MAX_DISTANCE,
    PAGE_BITS,
    PAGE_EDGE,
    PAGE_VOLUME,
    chebyshev_distance,
    corner_offsets,
    find_bricks,
    find_rows,
)

from . import waiting

MAX_DIRECTORY = 1 << 27  # entries (512 MB): an unbounded world, but not one stray point at the end of it


class SparseGrid:
    """A cubic lattice of which only bricks of 4 x 4 x 4 points are allocated, where something was observed.

    Lattice point ``i`` lies at ``origin + i * voxel_size``. Allocated brick ``m`` owns the 64 value rows
    ``64 m .. 64 m + 63``, the last axis fastest; the values themselves (``[num_voxels, C]``) belong to the caller.
    Rows never move when the grid grows. Lattice points of other bricks hold zero by definition.

    Any backend finds a brick with two loads: ``directory`` (dense over pages of 8 x 8 x 8 bricks) and ``pages``.
    Negative entries of both hold the distance to the nearest thing that exists, which is how far a ray may skip
    (`evoworld.reference.sparse_grid` spells the table out).

    Args:
        voxel_size: distance of neighbouring lattice points, metres.
        origin: world position of lattice point (0, 0, 0), metres.
        device: where the table lives.

    Attributes:
        brick_coordinates: ``[M, 3]`` int32, first lattice point of each brick divided by 4.
        directory: ``[Dx, Dy, Dz]`` int32, with ``page_origin`` the page of its first entry.
        pages: ``[P, 512]`` int32.

    Example:
        >>> import torch
        >>> grid = SparseGrid.from_points(torch.tensor([[0.0, 0.0, 1.0]]), voxel_size=0.1)
        >>> grid.num_bricks, grid.num_voxels
        (1, 64)
        >>> grid.merge(torch.tensor([[0.0, 0.0, -1.0]]))
        1
        >>> grid.lookup(torch.tensor([[0, 0, 10], [0, 0, 40]])).tolist()
        [2, -1]
    """

    edge = EDGE

    def __init__(
        self,
        voxel_size: float,
        origin: Sequence[float] = (0.0, 0.0, 0.0),
        device: torch.device | str = "cpu",
    ) -> None:
        if not (isinstance(voxel_size, (int, float)) and math.isfinite(voxel_size) and voxel_size > 0):
            raise ValueError(f"voxel_size: expected a positive number of metres, got {voxel_size!r}")
        corner = tuple(float(x) for x in origin)
        if len(corner) != 3 or not all(map(math.isfinite, corner)):
            raise ValueError(f"origin: expected 3 finite numbers, got {origin!r}")
        self.voxel_size = float(voxel_size)
        self.origin = corner
        self.page_origin = (0, 0, 0)
        self.directory = torch.full((1, 1, 1), EMPTY, dtype=torch.int32, device=device)
        # Storage grows by doubling; what is public is its live part.
        self._page_storage = torch.empty((0, PAGE_VOLUME), dtype=torch.int32, device=device)
        self._brick_storage = torch.empty((0, 3), dtype=torch.int32, device=device)
        self.pages = self._page_storage
        self.brick_coordinates = self._brick_storage

    @classmethod
    def from_points(
        cls,
        points: Tensor,  # [P, 3] metres
        voxel_size: float,
        origin: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> SparseGrid:
        """A grid, on the points' device, with every brick that holds one of the 8 corners of a point's cell."""
        _check_points(points)
        grid = cls(voxel_size, origin, points.device)
        grid.merge(points)
        return grid

    @classmethod
    def from_bricks(
        cls,
        brick_coordinates: Tensor,  # [M, 3] int
        voxel_size: float,
        origin: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> SparseGrid:
        """A grid with the given bricks in the given order: what ``brick_coordinates`` of a saved grid restores."""
        grid = cls(voxel_size, origin, brick_coordinates.device)
        grid.insert(brick_coordinates)
        return grid

    def merge(
        self,
        points: Tensor,  # [P, 3] metres
    ) -> int:
        """Allocates the bricks around ``points`` that are missing, after those that exist, and returns how many.

        Costs the points and the new bricks, not the grid (amortised). Points that are not finite are ignored.

        Raises:
            ValueError: for points of another shape, dtype or device, or so far apart that the directory would pass
                2^27 entries; the grid is then unchanged.
        """
        _check_points(points)
        if points.device != self.device:
            raise ValueError(f"points: expected them on the grid's device {self.device}, got {points.device}")
        points = points.detach().to(torch.float32).contiguous()
        bricks = _ops().missing_bricks(
            points, self.origin, self.voxel_size, self.directory, self.pages, self.page_origin
        )
        self._allocate(bricks)
        return bricks.shape[0]

    def insert(
        self,
        bricks: Tensor,  # [K, 3] int
    ) -> None:
        """Allocates the given bricks, in the given order.

        Raises:
            ValueError: for another shape, dtype or device, for a brick that is there twice or allocated already.
        """
        if bricks.ndim != 2 or bricks.shape[1] != 3 or bricks.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"bricks: expected [K, 3] int32 or int64, got {list(bricks.shape)} {bricks.dtype}")
        if bricks.device != self.device:
            raise ValueError(f"bricks: expected them on the grid's device {self.device}, got {bricks.device}")
        limit = 1 << 28  # of brick coordinates: their lattice coordinates fit 31 bits
        if bricks.numel() and (bricks.min() < -limit or bricks.max() >= limit):
            found = f"{bricks.min()} to {bricks.max()}"
            raise ValueError(f"bricks: expected coordinates from -2^28 to 2^28 - 1, got {found}")
        bricks = bricks.to(torch.int32).contiguous()
        if (find_bricks(bricks, self.directory, self.pages, self.page_origin) >= 0).any():
            raise ValueError("bricks: expected bricks that are not allocated, got some that are")
        if bricks.unique(dim=0).shape[0] != bricks.shape[0]:
            raise ValueError("bricks: expected each brick once, got some twice")
        self._allocate(bricks)

    def lookup(
        self,
        lattice: Tensor,  # [..., 3] int
    ) -> Tensor:  # [...] int64
        """The value row of each lattice point, -1 where its brick is not allocated."""
        if lattice.ndim == 0 or lattice.shape[-1] != 3 or lattice.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"lattice: expected [..., 3] int32 or int64, got {list(lattice.shape)} {lattice.dtype}")
        return find_rows(lattice, self.directory, self.pages, self.page_origin)

    def voxel_positions(self) -> Tensor:  # [V, 3] float32
        """World position of the lattice point of each value row, in order, metres."""
        local = torch.cartesian_prod(*[torch.arange(EDGE, dtype=torch.int32, device=self.device)] * 3)
        lattice = (self.brick_coordinates[:, None] * EDGE + local).reshape(-1, 3).double()
        return (lattice * self.voxel_size + lattice.new_tensor(self.origin)).float()

    def to(self, device: torch.device | str) -> SparseGrid:
        """The same grid on another device; the grid itself if it is there already."""
        if torch.empty(0, device=device).device == self.device:
            return self
        moved = SparseGrid(self.voxel_size, self.origin, device)
        moved.page_origin = self.page_origin
        moved.directory = self.directory.to(device)
        moved.pages = moved._page_storage = self.pages.to(device)
        moved.brick_coordinates = moved._brick_storage = self.brick_coordinates.to(device)
        return moved

    @property
    def num_bricks(self) -> int:
        return self.brick_coordinates.shape[0]

    @property
    def num_voxels(self) -> int:
        return self.brick_coordinates.shape[0] * BRICK_VOLUME

    @property
    def device(self) -> torch.device:
        return self.directory.device

    def __repr__(self) -> str:
        return (
            f"SparseGrid(voxel_size={self.voxel_size:g}, origin={self.origin}, bricks={self.num_bricks}, "
            f"voxels={self.num_voxels}, pages={self.pages.shape[0]}, device='{self.device}')"
        )

    def _allocate(
        self,
        bricks: Tensor,  # [K, 3] int32, unique and missing
    ) -> None:
        """Appends bricks: first the pages that their active neighbourhood needs, then the bricks themselves."""
        if bricks.shape[0] == 0:
            return
        corners = torch.stack([(bricks.amin(0) - 1) >> PAGE_BITS, (bricks.amax(0) >> PAGE_BITS) + 1])
        self._cover(*corners.tolist())
        self._append_pages(bricks)
        first = self.num_bricks
        self._brick_storage = _with_room(self._brick_storage, first, first + bricks.shape[0], fill=0)
        self.brick_coordinates = self._brick_storage[: first + bricks.shape[0]]
        self.brick_coordinates[first:] = bricks
        _ops().insert_bricks(self.directory, self.pages, self.page_origin, bricks, first)

    def _cover(
        self,
        low: list[int],  # [3] first page needed
        high: list[int],  # [3] one past the last
    ) -> None:
        """Grows the directory to hold the pages from low to high, by half its extent or more where it must grow."""
        box = needed = list(zip(low, high, strict=True))
        extent = [(a, a + n) for a, n in zip(self.page_origin, self.directory.shape, strict=True)]
        if self.pages.shape[0]:
            if all(a <= x and y <= b for (a, b), (x, y) in zip(extent, needed, strict=True)):
                return
            box = [_grow(have, need, padded=True) for have, need in zip(extent, needed, strict=True)]
            if _volume(box) > MAX_DIRECTORY:
                box = [_grow(have, need, padded=False) for have, need in zip(extent, needed, strict=True)]
        if _volume(box) > MAX_DIRECTORY:
            metres = " x ".join(f"{(b - a) * PAGE_EDGE * EDGE * self.voxel_size:.3g}" for a, b in box)
            raise ValueError(
                f"points: expected a world whose box holds at most 2^27 pages, got {metres} m or {_volume(box):.3g} "
                f"pages at voxel_size {self.voxel_size:g} m; drop the points that are far away or take larger voxels"
            )
        shape, existing = [b - a for a, b in box], self.directory
        self.directory = torch.full(shape, EMPTY, dtype=torch.int32, device=self.device)
        self.page_origin = tuple(a for a, _ in box)
        if self.pages.shape[0]:
            inside = [(a - origin, b - origin) for (a, b), origin in zip(extent, self.page_origin, strict=True)]
            (x0, x1), (y0, y1), (z0, z1) = inside
            self.directory[x0:x1, y0:y1, z0:z1] = existing
            self._lower_distances([a for a, _ in inside], [b for _, b in inside])

    def _append_pages(
        self,
        bricks: Tensor,  # [K, 3] int32, within the directory
    ) -> None:
        """Appends an empty page, in order of (x, y, z), for each that the bricks need and that does not exist."""
        _, ny, nz = self.directory.shape

        def flat(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            return (x.long() * ny + y) * nz + z

        home = flat(*(page - a for page, a in zip((bricks >> PAGE_BITS).unbind(-1), self.page_origin, strict=True)))
        # A brick makes those one lower active too: in the page below, along each axis on which it is its page's first.
        x, y, z = ((bricks & (PAGE_EDGE - 1)) == 0).long().unbind(-1)
        kinds = home * 8 + (x * 4 + y * 2 + z)
        if waiting.sizes_are_free(self.device):
            kinds = kinds.unique_consecutive().unique()
        corners = torch.arange(8, device=self.device) & kinds[:, None]  # of the cell of bricks below, in other pages
        place = (kinds[:, None] >> 3) - flat(*corner_offsets(self.device).unbind(-1))[corners]
        place = place.reshape(-1).sort().values
        fresh = self.directory.view(-1)[place] < 0
        fresh[1:] &= place[1:] != place[:-1]
        where = torch.stack([place // (ny * nz), place // nz % ny, place % nz])
        low = torch.where(fresh, where, MAX_DIRECTORY).amin(1)
        high = torch.where(fresh, where, -1).amax(1) + 1
        count, *box = torch.cat([fresh.sum()[None], low, high]).tolist()
        if count == 0:
            return
        # As place[fresh], whose length the host would have to ask for again: the others share one spare element.
        rank = torch.where(fresh, fresh.cumsum(0) - 1, count)
        place = place.new_empty(count + 1).scatter_(0, rank, place)[:count]
        first, last = self.pages.shape[0], self.pages.shape[0] + count
        self._page_storage = _with_room(self._page_storage, first, last, fill=EMPTY)
        self.pages = self._page_storage[:last]
        index = torch.arange(first, last, dtype=torch.int32, device=self.device)
        self.directory.view(-1).index_copy_(0, place, index)
        self._lower_distances(box[:3], box[3:])

    def _lower_distances(
        self,
        low: list[int],  # [3]
        high: list[int],  # [3]
    ) -> None:
        """Lowers the directory's distances to what they are with the pages from low to high, places in it."""
        reach = MAX_DISTANCE - 1
        low = [max(x - reach, 0) for x in low]
        high = [min(x + reach, n) for x, n in zip(high, self.directory.shape, strict=True)]
        box = self.directory[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
        torch.maximum(box, -1 - chebyshev_distance(box >= 0), out=box)


def _ops():
    """The two steps of growing, by whichever backend serves them (imported when needed: ops sit beside geometry)."""
    from evoworld.ops import sparse_grid

    return sparse_grid


def _check_points(points: Tensor) -> None:
    if points.ndim != 2 or points.shape[1] != 3 or not points.is_floating_point():
        raise ValueError(f"points: expected [P, 3] floating point, got {list(points.shape)} {points.dtype}")


def _grow(have: tuple[int, int], need: tuple[int, int], padded: bool) -> tuple[int, int]:
    """The range that holds both; where it must grow, by at least half of what there is if padded."""
    (a, b), (x, y) = have, need
    pad = (b - a + 1) // 2 if padded else 0
    return min(x, a - pad) if x < a else a, max(y, b + pad) if y > b else b


def _volume(box: list[tuple[int, int]]) -> int:
    return math.prod(b - a for a, b in box)


def _with_room(storage: Tensor, live: int, needed: int, fill: int) -> Tensor:
    """The storage, or a copy of its live rows in one at least twice as large, if it has fewer rows than needed."""
    if needed <= storage.shape[0]:
        return storage
    rows = max(needed, 2 * storage.shape[0])
    larger = torch.full((rows, storage.shape[1]), fill, dtype=storage.dtype, device=storage.device)
    larger[:live] = storage[:live]
    return larger
