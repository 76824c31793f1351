"""Convolutions over the lattice points of a sparse grid: each brick with a halo, batched through torch's conv3d."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evoworld.geometry import SparseGrid

EDGE = SparseGrid.edge
BRICK_VOLUME = EDGE**3
HALO_EDGE = EDGE + 2  # points along an edge of a brick with one more on either side


class BrickNeighbours:
    """Where each brick of a grid finds the values around it: a halo of one lattice point, or its 26 neighbours.

    What is not allocated holds zero. Made once for a grid that does not grow while it is used.

    Args:
        grid: of M bricks, V = 64 M lattice points.
    """

    def __init__(self, grid: SparseGrid):
        device = grid.device
        steps = torch.cartesian_prod(*[torch.arange(-1, 2, dtype=torch.int32, device=device)] * 3)  # [27, 3]
        rows = grid.lookup((grid.brick_coordinates[:, None] + steps) * EDGE)
        bricks = torch.where(rows >= 0, rows // BRICK_VOLUME, grid.num_bricks)  # [M, 27]; M: a spare one of zeros
        place = torch.arange(-1, EDGE + 1, device=device)
        place = torch.cartesian_prod(*[place] * 3)  # [216, 3] of a brick's points and its halo's
        powers = torch.tensor([9, 3, 1], device=device), torch.tensor([EDGE * EDGE, EDGE, 1], device=device)
        neighbour = ((place // EDGE + 1) * powers[0]).sum(-1)
        inside = (place % EDGE * powers[1]).sum(-1)
        self.num_bricks = grid.num_bricks
        self._bricks = bricks.reshape(-1)  # [27 M]
        # [216 M] value rows; one row of zeros stands for the spare brick's 64
        self._points = (bricks[:, neighbour] * BRICK_VOLUME + inside).clamp(max=grid.num_voxels).reshape(-1)

    def blocks(
        self,
        values: Tensor,  # [V, C]
    ) -> Tensor:  # [M, C, 6, 6, 6]
        """Each brick's values with those of the points around it. Gradients to values."""
        return self._gather(values, self._points, HALO_EDGE)

    def around(
        self,
        values: Tensor,  # [M, C] one row a brick
    ) -> Tensor:  # [M, C, 3, 3, 3]
        """Each brick's row with those of its 26 neighbours. Gradients to values."""
        return self._gather(values, self._bricks, 3)

    def _gather(self, values: Tensor, rows: Tensor, edge: int) -> Tensor:
        padded = F.pad(values, (0, 0, 0, 1))
        block = padded.index_select(0, rows).view(self.num_bricks, edge, edge, edge, values.shape[1])
        return block.permute(0, 4, 1, 2, 3)


class BrickConv3d(nn.Conv3d):
    """A 3 x 3 x 3 convolution of a sparse grid's values: Conv3d's parameters, on bricks instead of a dense volume.

    ``output[i] = bias + sum_d weight[d] values[i + d]`` for each allocated lattice point i, with zero for values of
    points that are not allocated: what ``Conv3d(padding=1)`` gives on the dense volume, at those points.

    Args:
        in_channels, out_channels: C and C'.
        coarse: the values are one row a brick, and neighbours are bricks.

    Example:
        >>> grid = SparseGrid.from_points(torch.rand(50, 3), voxel_size=0.1)
        >>> conv = BrickConv3d(4, 8)
        >>> conv(torch.rand(grid.num_voxels, 4), BrickNeighbours(grid)).shape == (grid.num_voxels, 8)
        True
    """

    def __init__(self, in_channels: int, out_channels: int, coarse: bool = False):
        super().__init__(in_channels, out_channels, kernel_size=3)
        self.coarse = coarse

    def forward(
        self,
        values: Tensor,  # [V, C], or [M, C] if coarse
        neighbours: BrickNeighbours,
    ) -> Tensor:  # [V, C'], or [M, C'] if coarse
        if neighbours.num_bricks == 0:
            return values.new_zeros(0, self.out_channels)
        blocks = neighbours.around(values) if self.coarse else neighbours.blocks(values)
        return super().forward(blocks).permute(0, 2, 3, 4, 1).reshape(-1, self.out_channels)


class BrickNorm(nn.GroupNorm):
    """GroupNorm over the 64 lattice points of a brick: what a place holds never depends on how much else was seen."""

    def forward(
        self,
        values: Tensor,  # [V, C]
    ) -> Tensor:  # [V, C]
        if values.shape[0] == 0:
            return values
        bricks = values.view(-1, BRICK_VOLUME, values.shape[1]).transpose(1, 2)
        return super().forward(bricks).transpose(1, 2).reshape(values.shape)
