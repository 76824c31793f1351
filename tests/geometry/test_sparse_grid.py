"""SparseGrid against a dictionary of bricks, and its table against distances measured by brute force."""

import itertools

import numpy as np
import pytest
import torch

import evoworld
from evoworld.geometry import SparseGrid
from evoworld.ops import available, sparse_grid


class Model:
    """What the grid must be: bricks in the order of their allocation."""

    def __init__(self, voxel_size, origin):
        self.voxel_size, self.origin, self.bricks = np.float32(voxel_size), np.float32(origin), {}

    def merge(self, points):
        cells = np.floor((points.numpy() - self.origin) / self.voxel_size).astype(int)
        corners = cells[:, None] + np.array(list(itertools.product((0, 1), repeat=3)))
        new = {tuple(brick) for brick in np.unique(corners.reshape(-1, 3) // 4, axis=0).tolist()} - self.bricks.keys()
        for brick in sorted(new):
            self.bricks[brick] = len(self.bricks)
        return len(new)

    def row(self, lattice):
        brick = self.bricks.get(tuple(x // 4 for x in lattice))
        x, y, z = (value % 4 for value in lattice)
        return -1 if brick is None else brick * 64 + x * 16 + y * 4 + z


def nearest(places, occupied):  # [N, 3], [K, 3] -> [N], at most 8
    return np.minimum(np.abs(places[:, None] - occupied[None]).max(-1).min(-1), 8)


def box(low, shape):
    return np.stack(np.meshgrid(*[np.arange(a, a + n) for a, n in zip(low, shape, strict=True)], indexing="ij"), -1)


def check_table(grid):
    """Every entry of directory and pages, distances included, from the list of bricks alone."""
    bricks = grid.brick_coordinates.numpy()
    corners = np.array(list(itertools.product((0, 1), repeat=3)))
    active = np.unique((bricks[:, None] - corners).reshape(-1, 3), axis=0)
    wanted_pages = np.unique(active // 8, axis=0)

    directory = grid.directory.numpy().reshape(-1)
    pages = box(grid.page_origin, grid.directory.shape).reshape(-1, 3)
    assert np.array_equal(pages[directory >= 0], wanted_pages)
    assert sorted(directory[directory >= 0]) == list(range(len(wanted_pages)))
    assert np.array_equal(-1 - directory[directory < 0], nearest(pages, wanted_pages)[directory < 0])

    index = {tuple(brick): i for i, brick in enumerate(bricks.tolist())}
    for page, entry in zip(pages[directory >= 0], directory[directory >= 0], strict=True):
        places = box(page * 8, (8, 8, 8)).reshape(-1, 3)
        expected = -1 - nearest(places, active[(np.abs(active // 8 - page) <= 1).all(-1)])
        for i, place in enumerate(places.tolist()):
            expected[i] = index.get(tuple(place), expected[i])
        assert np.array_equal(grid.pages[entry].numpy(), expected)


def walk():
    """Points around a place that moves on, towards negative coordinates too."""
    draw = torch.Generator().manual_seed(0)
    for i in range(5):
        place = torch.tensor([2.1 * i, -1.7 * i, 0.9 * i * (-1) ** i])
        yield place + (0.4 + 0.4 * i) * torch.randn(60, 3, generator=draw)


@pytest.mark.parametrize("backend", [name for name in ("reference", "cpu") if available("sparse_grid")[name] is None])
def test_growth_matches_the_model(backend):
    grid, model = SparseGrid(0.1, (0.3, -0.2, 0.1)), Model(0.1, (0.3, -0.2, 0.1))
    for points in walk():
        with evoworld.backend(backend):
            assert grid.merge(points) == model.merge(points)
        assert grid.brick_coordinates.tolist() == [list(brick) for brick in model.bricks]
        assert (grid.num_bricks, grid.num_voxels) == (len(model.bricks), 64 * len(model.bricks))
        check_table(grid)
    assert grid.pages.shape[0] > 8
    assert grid.merge(points) == 0


def test_lookup_matches_the_model():
    grid, model = SparseGrid(0.1, (0.3, -0.2, 0.1)), Model(0.1, (0.3, -0.2, 0.1))
    for points in walk():
        grid.merge(points)
        model.merge(points)
    lattice = torch.cat([torch.randint(-60, 90, (2000, 3)), torch.randint(-(2**30), 2**30, (50, 3))])
    lattice = torch.cat([lattice, 4 * grid.brick_coordinates + torch.randint(0, 4, (grid.num_bricks, 3))])
    expected = [model.row(place) for place in lattice.tolist()]
    found = grid.lookup(lattice)
    assert found.dtype == torch.int64
    assert found.tolist() == expected
    assert grid.lookup(lattice[:600].int().reshape(2, 300, 3)).flatten().tolist() == expected[:600]
    assert min(expected) == -1 and max(expected) > 0


def test_rows_never_move():
    grid = SparseGrid(0.1)
    seen = torch.empty(0, 3)
    for points in walk():
        assert torch.equal(grid.voxel_positions()[: seen.shape[0]], seen)
        grid.merge(points)
        seen = grid.voxel_positions()
        lattice = (seen.double() / 0.1).round().long()
        assert torch.equal(grid.lookup(lattice), torch.arange(grid.num_voxels))


def test_voxel_positions():
    grid = SparseGrid.from_bricks(torch.tensor([[0, 0, 0], [-1, 2, 0]]), voxel_size=0.5, origin=(1.0, 2.0, 3.0))
    positions = grid.voxel_positions()
    assert positions.shape == (128, 3)
    assert positions[0].tolist() == [1.0, 2.0, 3.0]
    assert positions[1].tolist() == [1.0, 2.0, 3.5]  # the last axis is the fastest
    assert positions[64 + 16].tolist() == [1.0 + 0.5 * -3, 2.0 + 0.5 * 8, 3.0]


@pytest.mark.parametrize(
    ("point", "bricks"),
    [
        ([0.5, 0.5, 0.5], [[0, 0, 0]]),
        ([-1e-6, 0.5, 0.5], [[-1, 0, 0], [0, 0, 0]]),  # cell -1 has a corner in brick 0
        ([3.0, 0.5, 0.5], [[0, 0, 0], [1, 0, 0]]),  # on the lattice: the cell above it, whose corner 4 is in brick 1
        ([2.9, 0.5, 0.5], [[0, 0, 0]]),
        ([3.5, 3.5, 3.5], [list(b) for b in itertools.product((0, 1), repeat=3)]),
        ([-4.0, -4.0, -4.0], [[-1, -1, -1]]),
    ],
)
def test_bricks_of_a_point(point, bricks):
    grid = SparseGrid.from_points(torch.tensor([point]), voxel_size=1.0)
    assert grid.brick_coordinates.tolist() == bricks
    check_table(grid)


def test_every_point_may_need_8_bricks():
    """Far more bricks than a frame adds: tables that grow by the need have to."""
    points = 8.0 * torch.cartesian_prod(*[torch.arange(27)] * 3) + 3.5
    grid = SparseGrid(1.0)
    table = (grid.directory, grid.pages, grid.page_origin)
    bricks = sparse_grid.missing_bricks(points[torch.randperm(27**3)], grid.origin, grid.voxel_size, *table)
    assert torch.equal(bricks, torch.cartesian_prod(*[torch.arange(54, dtype=torch.int32)] * 3))


def test_from_bricks_restores_rows():
    grid = SparseGrid(0.1, (0.3, -0.2, 0.1))
    for points in walk():
        grid.merge(points)
    again = SparseGrid.from_bricks(grid.brick_coordinates, grid.voxel_size, grid.origin)
    assert again.num_bricks == grid.num_bricks > 200
    assert torch.equal(again.brick_coordinates, grid.brick_coordinates)
    assert torch.equal(again.voxel_positions(), grid.voxel_positions())
    lattice = torch.randint(-60, 90, (2000, 3))
    assert torch.equal(again.lookup(lattice), grid.lookup(lattice))
    check_table(again)
    assert again.merge(torch.cat(list(walk()))) == 0


def test_points_that_are_not_finite_are_ignored():
    bad = torch.tensor([[float("nan"), 0, 0], [0, float("inf"), 0], [0, 0, -float("inf")], [1e30, 0, 0]])
    grid = SparseGrid.from_points(bad, voxel_size=0.1)
    assert grid.num_bricks == 0
    assert grid.merge(torch.cat([bad, torch.full((1, 3), 0.1)])) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_points_of_other_precision(dtype):
    points = (torch.arange(30).reshape(10, 3) / 8).to(dtype)
    expected = SparseGrid.from_points(points.float(), 0.1)
    assert torch.equal(SparseGrid.from_points(points, 0.1).brick_coordinates, expected.brick_coordinates)


def test_empty_grid():
    grid = SparseGrid.from_points(torch.empty(0, 3), voxel_size=0.1)
    assert (grid.num_bricks, grid.num_voxels) == (0, 0)
    assert grid.voxel_positions().shape == (0, 3)
    assert grid.lookup(torch.tensor([[0, 0, 0]])).tolist() == [-1]
    assert SparseGrid.from_bricks(grid.brick_coordinates, 0.1).num_bricks == 0
    assert grid.merge(torch.zeros(1, 3)) == 1


def test_directory_covers_the_world_not_its_way_to_the_origin():
    grid = SparseGrid.from_points(torch.tensor([[1000.0, -1000.0, 1000.0]]), voxel_size=0.05)
    assert grid.directory.numel() <= 8
    check_table(grid)


def test_growing_is_amortised():
    """A long walk copies what exists a logarithm of times, and the directory stays within twice the need."""
    grid, moves, frames = SparseGrid(0.1), {"directory": 0, "pages": 0, "brick_coordinates": 0}, 200
    for i in range(frames):
        before = {name: getattr(grid, name).data_ptr() for name in moves}
        assert grid.merge(torch.tensor([[0.9 * i, 0.1, 0.1]])) > 0
        for name in moves:
            moves[name] += getattr(grid, name).data_ptr() != before[name]
    assert all(1 < count <= 14 for count in moves.values()), moves
    assert grid.directory.shape[0] < 2 * (grid.directory >= 0).any(-1).any(-1).sum()


def test_a_world_too_large_for_the_directory_says_so_and_stays_as_it_was():
    grid = SparseGrid.from_points(torch.zeros(1, 3), voxel_size=0.01)
    with pytest.raises(ValueError, match=r"2\^27 pages.*larger voxels"):
        grid.merge(torch.full((1, 3), 1000.0))
    check_table(grid)
    assert grid.num_bricks == 1
    assert grid.merge(torch.tensor([[0.5, 0.0, 0.0]])) == 1
    check_table(grid)


def test_to_device():
    grid = SparseGrid.from_points(torch.rand(10, 3), voxel_size=0.1, origin=(1.0, 2.0, 3.0))
    assert grid.to("cpu") is grid
    moved = grid.to("meta")
    assert moved.device.type == moved.pages.device.type == moved.brick_coordinates.device.type == "meta"
    assert (moved.num_voxels, moved.origin, moved.page_origin) == (grid.num_voxels, grid.origin, grid.page_origin)


def test_repr_names_what_matters():
    grid = SparseGrid.from_points(torch.full((1, 3), 0.5), voxel_size=1.0)
    assert repr(grid) == (
        "SparseGrid(voxel_size=1, origin=(0.0, 0.0, 0.0), bricks=1, voxels=64, pages=8, device='cpu')"
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SparseGrid(0.0), r"voxel_size: expected a positive number of metres, got 0\.0"),
        (lambda: SparseGrid(float("nan")), "voxel_size: .*got nan"),
        (lambda: SparseGrid("a"), "voxel_size: .*got 'a'"),
        (lambda: SparseGrid(0.1, (0.0, 1.0)), r"origin: expected 3 finite numbers, got \(0\.0, 1\.0\)"),
        (lambda: SparseGrid(0.1, (0.0, 1.0, float("inf"))), "origin: expected 3 finite numbers"),
        (lambda: SparseGrid.from_points(torch.zeros(3), 0.1), r"points: expected \[P, 3\] floating point, got \[3\]"),
        (lambda: SparseGrid.from_points(torch.zeros(4, 2), 0.1), r"points: .*got \[4, 2\]"),
        (lambda: SparseGrid(0.1).merge(torch.zeros(4, 3, dtype=torch.int32)), "points: .*int32"),
        (lambda: SparseGrid(0.1).merge(torch.zeros(4, 3, device="meta")), "points: .*device cpu, got meta"),
        (lambda: SparseGrid(0.1).insert(torch.zeros(1, 3)), r"bricks: expected \[K, 3\] int32 or int64, got .*float32"),
        (lambda: SparseGrid(0.1).insert(torch.zeros(1, 2).int()), r"bricks: expected \[K, 3\]"),
        (lambda: SparseGrid(0.1).insert(torch.zeros(2, 3).int()), "bricks: expected each brick once"),
        (lambda: SparseGrid(0.1).insert(torch.tensor([[2**28, 0, 0]])), r"bricks: expected coordinates from -2\^28"),
        (lambda: SparseGrid(0.1).lookup(torch.zeros(1, 3)), r"lattice: expected .*got \[1, 3\] torch\.float32"),
        (lambda: SparseGrid(0.1).lookup(torch.zeros(3, 1).int()), r"lattice: expected .*got \[3, 1\]"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_inserting_what_is_there_is_an_error():
    grid = SparseGrid.from_points(torch.zeros(1, 3) + 0.1, 0.1)
    with pytest.raises(ValueError, match="not allocated, got some that are"):
        grid.insert(grid.brick_coordinates)
