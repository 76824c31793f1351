"""The native steps of growing a grid against the reference: the same integers."""

import pytest
import torch

import evoworld
from evoworld.geometry import SparseGrid
from evoworld.ops import available, sparse_grid
from evoworld.ops.library import grid_arguments

pytestmark = pytest.mark.skipif(available("sparse_grid")["cpu"] is not None, reason="no native CPU library")


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


def test_growing_gives_the_same_tables():
    grids = {"cpu": SparseGrid(0.1, (0.05, -0.3, 0.2)), "reference": SparseGrid(0.1, (0.05, -0.3, 0.2))}
    for threads, points in zip((1, 2, 5, 2), frames(), strict=True):
        torch.set_num_threads(threads)
        for name, grid in grids.items():
            with evoworld.backend(name):
                grid.merge(points)
        native, reference = grids.values()
        assert native.page_origin == reference.page_origin
        for name in ("brick_coordinates", "directory", "pages"):
            assert torch.equal(getattr(native, name), getattr(reference, name)), name
    assert native.pages.shape[0] > 27 and native.num_bricks > 1000


@pytest.mark.parametrize("voxel_size", [0.1, 0.25])
def test_hard_points_have_the_same_bricks(voxel_size):
    grid = SparseGrid.from_points(torch.zeros(1, 3), voxel_size)
    table = (grid.directory, grid.pages, grid.page_origin)
    found = {}
    for name in ("cpu", "reference"):
        with evoworld.backend(name):
            found[name] = sparse_grid.missing_bricks(hard_points(), grid.origin, voxel_size, *table)
    assert found["cpu"].dtype == torch.int32 and found["cpu"].shape[0] > 100
    assert torch.equal(found["cpu"], found["reference"])


def test_no_points():
    grid = SparseGrid(0.1)
    table = (grid.directory, grid.pages, grid.page_origin)
    for name in ("cpu", "reference"):
        with evoworld.backend(name):
            assert sparse_grid.missing_bricks(torch.empty(0, 3), grid.origin, 0.1, *table).shape == (0, 3)
            sparse_grid.insert_bricks(*table, torch.empty(0, 3, dtype=torch.int32), 0)


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
