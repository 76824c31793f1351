"""Convolutions on bricks: exactly those of the dense volume, where something is allocated."""

import pytest
import torch
from torch import nn

from evoworld.geometry import SparseGrid
from evoworld.world.brick_conv import BrickConv3d, BrickNeighbours, BrickNorm

SHAPE = (3, 2, 4)  # bricks of the dense volume
LOW = (-2, 0, -1)  # its first brick


def box_of_bricks(keep=lambda bricks: bricks[:, 0] > -9):
    """The grid of the box's bricks, in random order, of those that are kept."""
    axes = [torch.arange(low, low + count, dtype=torch.int32) for low, count in zip(LOW, SHAPE)]
    bricks = torch.cartesian_prod(*axes)
    bricks = bricks[keep(bricks)]
    return SparseGrid.from_bricks(bricks[torch.randperm(len(bricks))], voxel_size=0.1)


def whole_numbers(*shape):
    return torch.randint(-4, 5, shape).double()  # no sum of their products is ever rounded


def dense_rows(grid, edge):
    """Where each value row lies in the dense volume: one index a row."""
    local = torch.cartesian_prod(*[torch.arange(edge)] * 3)
    place = (grid.brick_coordinates - torch.tensor(LOW))[:, None] * edge + local
    x, y, z = place.reshape(-1, 3).unbind(-1)
    return (x * SHAPE[1] * edge + y) * SHAPE[2] * edge + z


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("holes", [False, True])
def test_it_is_the_dense_convolution(coarse, holes):
    torch.manual_seed(0)
    grid = box_of_bricks(lambda bricks: (bricks.sum(-1) % 3 > 0) | (not holes))
    edge = 1 if coarse else 4
    conv = BrickConv3d(3, 5, coarse).double()
    with torch.no_grad():
        conv.weight.copy_(whole_numbers(5, 3, 3, 3, 3))
        conv.bias.copy_(whole_numbers(5))
    values, rows = whole_numbers(grid.num_bricks * edge**3, 3), dense_rows(grid, edge)
    dense = torch.zeros(SHAPE[0] * SHAPE[1] * SHAPE[2] * edge**3, 3, dtype=torch.float64)
    dense[rows] = values
    volume = dense.view(*(n * edge for n in SHAPE), 3).permute(3, 0, 1, 2)[None]
    expected = nn.functional.conv3d(volume, conv.weight, conv.bias, padding=1)[0].flatten(1).T[rows]
    assert torch.equal(conv(values, BrickNeighbours(grid)), expected)


@pytest.mark.parametrize("coarse", [False, True])
def test_gradients(coarse):
    torch.manual_seed(0)
    grid = box_of_bricks(lambda bricks: bricks.sum(-1) == 0)
    neighbours = BrickNeighbours(grid)
    conv = BrickConv3d(1, 2, coarse).double()
    rows = grid.num_bricks if coarse else grid.num_voxels
    values = torch.randn(rows, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: conv(x, neighbours), values, fast_mode=True)


def test_its_state_is_that_of_conv3d():
    conv = BrickConv3d(3, 5)
    assert {name: x.shape for name, x in conv.state_dict().items()} == {
        name: x.shape for name, x in nn.Conv3d(3, 5, 3).state_dict().items()
    }


def test_the_norm_is_of_each_brick_alone():
    torch.manual_seed(0)
    norm, values = BrickNorm(2, 4), torch.randn(3 * 64, 4)
    with torch.no_grad():
        norm.weight.uniform_()
    output = norm(values)
    torch.testing.assert_close(norm(values[64:128]), output[64:128])
    bricks = values.view(3, 64, 4).transpose(1, 2)
    torch.testing.assert_close(output.view(3, 64, 4).transpose(1, 2), nn.GroupNorm.forward(norm, bricks))


def test_an_empty_grid():
    neighbours = BrickNeighbours(SparseGrid(0.1))
    assert BrickConv3d(3, 5)(torch.zeros(0, 3), neighbours).shape == (0, 5)
    assert BrickConv3d(3, 5, coarse=True)(torch.zeros(0, 3), neighbours).shape == (0, 5)
    assert BrickNorm(1, 3)(torch.zeros(0, 3)).shape == (0, 3)
