"""A room of boxes, known in closed form: panoramas with depth at any resolution, and a grid filled with its surfaces.

No capture and no image library is needed, and each pixel has a ray and a depth of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from evoworld.geometry import Panorama, SparseGrid, make_pose
from evoworld.world.level import density_of_distance

BAND = (-1.0, 0.0, 1.0)  # voxels before and behind a surface in which lattice points exist, as in a memory
DEPTH_NOISE = 0.003  # of the depth: about what a depth camera has
TALLEST_BOX = 0.45  # of the room's height; cameras are above
# 256 lattice points long, a tenth of its bricks occupied; a 256 x 512 panorama's 8 x 4 tiles meet 18 cells of 32.
HALL = (12.8, 10.0, 4.0), 12
VOXEL_SIZE = 0.05


@dataclass(frozen=True)
class Room:
    """`size` in metres, with boxes on its floor; the lowest corner lies at (0.1, 0.1, 0.1)."""

    size: tuple[float, float, float]
    num_boxes: int
    voxel_size: float
    seed: int = 0

    @cached_property
    def boxes(self) -> Tensor:  # [B + 1, 2, 3] metres; the last one is the room itself
        draw = torch.Generator().manual_seed(self.seed)
        size = torch.tensor(self.size)
        low = torch.rand(self.num_boxes, 3, generator=draw) * size * 0.85
        high = low + (0.05 + 0.15 * torch.rand(self.num_boxes, 3, generator=draw)) * size
        low[:, 2] = 0.0
        high[:, 2] = (0.1 + (TALLEST_BOX - 0.1) * torch.rand(self.num_boxes, generator=draw)) * size[2]
        boxes = torch.stack([low, torch.minimum(high, size)], dim=1)
        return torch.cat([boxes, torch.stack([torch.zeros(3), size])[None]]) + 0.1

    def pose(self, index: int) -> Tensor:  # [4, 4]
        """A level camera at a place and with a heading of its own."""
        draw = torch.Generator().manual_seed(1000 * self.seed + index)
        x, y, z, turn = torch.rand(4, generator=draw).tolist()
        eye = torch.tensor([0.15 + 0.7 * x, 0.15 + 0.7 * y, 0.5 + 0.3 * z]) * torch.tensor(self.size) + 0.1
        cosine, sine = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
        # Columns: the camera's right, down and forward axes in the world.
        return make_pose(torch.tensor([[sine, 0.0, cosine], [-cosine, 0.0, sine], [0.0, -1.0, 0.0]]), eye)

    def rays(self, camera: Panorama, index: int) -> tuple[Tensor, Tensor]:  # [R, 3], [R, 3]
        """Origins and directions of the camera at `pose(index)`."""
        origins, directions = camera.rays(self.pose(index))
        return origins.contiguous(), directions.contiguous()

    def depth(self, origins: Tensor, directions: Tensor, noise_seed: int | None = None) -> Tensor:
        """Metres [R] to the first surface along each ray [R, 3], with a depth camera's noise where a seed is given."""
        nearest = torch.full(origins.shape[:1], math.inf)
        for low, high in self.boxes:
            first, last = (low - origins) / directions, (high - origins) / directions
            enters = torch.minimum(first, last).amax(-1)
            leaves = torch.maximum(first, last).amin(-1)
            hit = torch.where(enters > 0, enters, leaves)  # a box from outside, the room from inside
            nearest = torch.where((enters <= leaves) & (hit > 0), torch.minimum(nearest, hit), nearest)
        if noise_seed is not None:
            draw = torch.Generator().manual_seed(noise_seed)
            nearest = nearest * (1 + DEPTH_NOISE * torch.randn(nearest.shape, generator=draw))
        return nearest

    def signed_distance(self, points: Tensor) -> Tensor:  # [P, 3] -> [P]
        """Metres to the nearest surface, positive in free space (a lower bound in corners)."""
        *boxes, room = self.boxes
        distance = torch.minimum(points - room[0], room[1] - points).amin(-1)
        for low, high in boxes:
            distance = torch.minimum(distance, torch.maximum(low - points, points - high).amax(-1))
        return distance

    def surface_points(self) -> Tensor:  # [P, 3]
        """Points of all faces, half a voxel apart, and as many a voxel before and behind them."""
        points = []
        for box in self.boxes:
            axes = [torch.arange(a, b + self.voxel_size / 2, self.voxel_size / 2) for a, b in box.T.tolist()]
            for axis in range(3):
                for side in box[:, axis].tolist():
                    for offset in BAND:
                        plane = list(axes)
                        plane[axis] = torch.tensor([side + offset * self.voxel_size])
                        points.append(torch.cartesian_prod(*plane))
        return torch.cat(points)

    @cached_property
    def grid(self) -> SparseGrid:
        """The lattice points around all surfaces."""
        return SparseGrid.from_points(self.surface_points(), self.voxel_size)

    @cached_property
    def density(self) -> Tensor:  # [V] 1/m
        return density_of_distance(self.signed_distance(self.grid.voxel_positions()), self.voxel_size)

    @cached_property
    def extent(self) -> int:
        """Lattice points along the longest edge: the dense grid that the sparse one stands for is this to the third."""
        return round(max(self.size) / self.voxel_size)

    @property
    def occupied(self) -> float:
        """Bricks allocated, of those of a dense cube of the same extent."""
        return self.grid.num_bricks / math.ceil(self.extent / self.grid.edge) ** 3


def hall(tiny: bool = False) -> Room:
    """The room that the GPU report times everything in."""
    return Room(*HALL, VOXEL_SIZE * (16 if tiny else 1))


def cells_of_tiles(
    depth: Tensor,  # [R]
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
    width: int,
    voxel_size: float,
) -> float:
    """How many distinct cells an 8 x 4 tile of pixels falls into, on average."""
    cell = ((origins + depth[:, None] * directions) / voxel_size).floor().long()
    key = (cell[:, 0] * 1_000_003 + cell[:, 1]) * 1_000_003 + cell[:, 2]
    rows = depth.shape[0] // width // 4 * 4
    tiles = key.view(-1, width)[:rows, : width // 8 * 8].unflatten(0, (-1, 4)).unflatten(-1, (-1, 8))
    tiles = tiles.movedim(1, 2).flatten(2).flatten(0, 1).sort(-1).values
    return 1 + (tiles.diff(dim=-1) != 0).sum(-1).double().mean().item()
