"""The specification of voxel_scatter against loops in plain Python, by finite differences, and by its properties."""

import itertools
import math

import pytest
import torch

from evoworld import reference
from evoworld.geometry import SparseGrid
from evoworld.reference.sparse_grid import cell_corners, lattice_coordinates
from evoworld.testing import SCATTER_CASES


def in_float64(case):
    arguments = case.build()
    return {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}


def by_loops(features, depth, origins, directions, grid, weight, image_width):
    """One corner at a time, through a dictionary of bricks."""
    bricks = {tuple(brick): index for index, brick in enumerate(grid.brick_coordinates.tolist())}
    feature_sum = [[0.0] * features.shape[1] for _ in range(grid.num_voxels)]
    weight_sum = [0.0] * grid.num_voxels
    for ray in range(features.shape[0]):
        t = depth[ray].item()
        if not (math.isfinite(t) and t > 0):
            continue
        point = [o + t * d for o, d in zip(origins[ray].tolist(), directions[ray].tolist(), strict=True)]
        g = [(p - o) / grid.voxel_size for p, o in zip(point, grid.origin, strict=True)]
        for corner in itertools.product((0, 1), repeat=3):
            lattice = [math.floor(x) + c for x, c in zip(g, corner, strict=True)]
            brick = bricks.get(tuple(x // 4 for x in lattice))
            if brick is None:
                continue
            x, y, z = (value % 4 for value in lattice)
            row = brick * 64 + x * 16 + y * 4 + z
            share = math.prod(1 - abs(a - b) for a, b in zip(g, lattice, strict=True)) * weight[ray].item()
            weight_sum[row] += share
            for channel, value in enumerate(features[ray].tolist()):
                feature_sum[row][channel] += share * value
    return torch.tensor(feature_sum, dtype=torch.float64), torch.tensor(weight_sum, dtype=torch.float64)


@pytest.mark.parametrize("name", ["channels_3", "grid_origin", "patch", "invalid_depth", "negative_coordinates"])
def test_equals_loops(name):
    arguments = in_float64(SCATTER_CASES[name])
    for found, expected in zip(reference.voxel_scatter(**arguments), by_loops(**arguments), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["channels_3", "patch", "far_from_origin"])
def test_gradients(name):
    arguments = in_float64(SCATTER_CASES[name])
    arguments = {k: v[:7] if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    names = ("features", "depth", "origins", "directions", "weight")
    inputs = [arguments[key].requires_grad_() for key in names]

    def op(*values):
        return reference.voxel_scatter(**{**arguments, **dict(zip(names, values, strict=True))})

    assert torch.autograd.gradcheck(op, inputs, fast_mode=True)


def test_invalid_depth_gets_zero_gradients_not_nan():
    arguments = in_float64(SCATTER_CASES["invalid_depth"])
    leaves = {k: v.requires_grad_() for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    feature_sum, weight_sum = reference.voxel_scatter(**arguments)
    (feature_sum.sum() + weight_sum.sum()).backward()
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad[:5], torch.zeros_like(leaf.grad[:5])), name
        assert leaf.grad.isfinite().all(), name


@pytest.mark.parametrize("name", ["channels_8", "patch", "depth_anywhere"])
def test_is_the_adjoint_of_sampling(name):
    arguments = in_float64(SCATTER_CASES[name])
    features, grid = arguments["features"], arguments["grid"]
    values = torch.randn(grid.num_voxels, features.shape[1], dtype=torch.float64)
    arguments["weight"] = torch.ones_like(arguments["depth"])
    scattered, _ = reference.voxel_scatter(**arguments)

    g = lattice_coordinates(arguments["origins"], arguments["directions"], arguments["depth"], grid)
    rows, weights = cell_corners(g, grid)
    corners = torch.where(rows[..., None] >= 0, values[rows.clamp(min=0)], 0)
    sampled = (weights[..., None] * corners).sum(1)
    torch.testing.assert_close((scattered * values).sum(), (features * sampled).sum())


def test_weights_of_a_point_sum_to_one_and_have_it_as_their_mean():
    points = torch.rand(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    grid = SparseGrid.from_points(points.float(), voxel_size=0.1, origin=(0.03, 0.02, 0.01))
    depth, directions = points.norm(dim=-1), torch.nn.functional.normalize(points, dim=-1)
    shares, _ = reference.voxel_scatter(torch.eye(100).double(), depth, torch.zeros_like(points), directions, grid)
    torch.testing.assert_close(shares.sum(0), torch.ones(100, dtype=torch.float64))
    torch.testing.assert_close(shares.T @ grid.voxel_positions().double(), points, rtol=0, atol=1e-6)
