"""The steps of growing a grid by every backend against the reference: the same integers."""

import pytest
import torch

import evoworld
from evoworld.geometry import SparseGrid
from evoworld.ops import sparse_grid
from evoworld.ops.library import grid_arguments
from evoworld.testing import backends

BACKENDS = [b for b in backends("sparse_grid") if b[0] != "reference"]
on_every_backend = pytest.mark.parametrize(("backend", "device"), BACKENDS)
needs_native = pytest.mark.skipif(("cpu", "cpu") not in BACKENDS, reason="no native CPU library")


def frames(count=4, points=3000):
    draw = torch.Generator().manual_seed(1)
    for i in range(count):
        directions = torch.nn.functional.normalize(torch.randn(points, 3, generator=draw), dim=-1)
        yield directions * torch.rand(points, 1, generator=draw).sqrt() * 5 + torch.tensor([3.0 * i, -2.5 * i, i])


def hard_points():
    """On lattice planes and next to them, at the ends of what floats and integers hold, and not finite."""
    planes = torch.arange(-6, 7) * 0.1
    below = torch.nextafter(planes, torch.full_like(planes, -10))
    far = torch.tensor([1e8, -1e8, 9.99e7, -1.01e8, 3e38, float("inf"), float("nan"), -float("inf"), 1e-38, -1e-38])
    return torch.cartesian_prod(*[torch.cat([planes, below, far])] * 3)


@on_every_backend
def test_growing_gives_the_same_tables(backend, device):
    found, expected = (SparseGrid(0.1, (0.05, -0.3, 0.2), where) for where in (device, "cpu"))
    for threads, points in zip((1, 2, 5, 2), frames(), strict=True):
        torch.set_num_threads(threads)
        with evoworld.backend(backend):
            found.merge(points.to(device))
        with evoworld.backend("reference"):
            expected.merge(points)
        assert found.page_origin == expected.page_origin
        for name in ("brick_coordinates", "directory", "pages"):
            assert torch.equal(getattr(found, name).cpu(), getattr(expected, name)), name
    assert found.pages.shape[0] > 27 and found.num_bricks > 1000


@on_every_backend
@pytest.mark.parametrize("voxel_size", [0.1, 0.25])
def test_hard_points_have_the_same_bricks(backend, device, voxel_size):
    grid = SparseGrid.from_points(torch.zeros(1, 3), voxel_size)
    table = (grid.directory, grid.pages, grid.page_origin)
    with evoworld.backend("reference"):
        expected = sparse_grid.missing_bricks(hard_points(), grid.origin, voxel_size, *table)
    table = (grid.directory.to(device), grid.pages.to(device), grid.page_origin)
    with evoworld.backend(backend):
        found = sparse_grid.missing_bricks(hard_points().to(device), grid.origin, voxel_size, *table)
    assert found.dtype == torch.int32 and found.shape[0] > 100
    assert torch.equal(found.cpu(), expected)


@on_every_backend
def test_no_points(backend, device):
    grid = SparseGrid(0.1, device=device)
    table = (grid.directory, grid.pages, grid.page_origin)
    with evoworld.backend(backend):
        found = sparse_grid.missing_bricks(torch.empty(0, 3, device=device), grid.origin, 0.1, *table)
        assert found.shape == (0, 3)
        sparse_grid.insert_bricks(*table, torch.empty(0, 3, dtype=torch.int32, device=device), 0)


@needs_native
def test_more_bricks_than_an_index_can_name():
    grid = SparseGrid.from_bricks(torch.zeros(1, 3, dtype=torch.int32), 0.1)
    brick = torch.ones(1, 3, dtype=torch.int32)
    before = grid.pages.clone()
    for first in (2**31 - 1, 2**40, -1):
        with pytest.raises(RuntimeError, match="first_index: more than 2\\^31 bricks"):
            torch.ops.evoworld.insert_bricks(grid.directory, grid.pages, list(grid.page_origin), brick, first)
    assert torch.equal(grid.pages, before)


@needs_native
def test_opcheck():
    grid = SparseGrid.from_points(next(frames(points=50)), 0.1)
    points = torch.rand(20, 3)
    torch.library.opcheck(torch.ops.evoworld.missing_bricks.default, (points, *grid_arguments(grid)))
    space = grid.pages.clone()
    taken = torch.randint(0, 8, (400, 3), dtype=torch.int32) + 8 * torch.tensor(grid.page_origin).int() + 8
    inside = SparseGrid.from_bricks(taken.unique(dim=0), 0.1)
    fresh = (inside.directory, torch.full_like(inside.pages, -9), list(inside.page_origin), inside.brick_coordinates, 0)
    torch.library.opcheck(torch.ops.evoworld.insert_bricks.default, fresh)
    assert torch.equal(grid.pages, space)
