"""The learned memory's storage: features at the lattice points of one sparse grid, and how they are rendered."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from evoworld.geometry import SparseGrid
from evoworld.ops import volume_render

from .brick_conv import BRICK_VOLUME
from .rgbd import FAR

STEPS_PER_VOXEL = 2  # samples along a ray
OPTICAL_DEPTH = 4.0  # of a voxel whose first channel's softplus is 1
MIN_TRANSMITTANCE = 1e-3  # where a ray ends
NEAR = 1e-3  # metres: where rays start


class Rendered(NamedTuple):
    """What rays gather on their way through the memory."""

    features: Tensor  # [R, C] sums over the samples' weights: C - 1 channels, and the confidence
    depth: Tensor  # [R] metres, 0 where nothing is
    opacity: Tensor  # [R]


class FeatureMemory:
    """Learned features of places: a world of one resolution, whose tensors gradients flow through.

    The first channel of `values` is the logit of density, ``OPTICAL_DEPTH softplus(logit) / voxel_size`` per metre
    where anything was observed or proposed; `evidence` counts by how many pixels, weighted by a learned trust, and the
    confidence in a place is ``evidence / (1 + evidence)``. Updates replace the tensors and never write into them.

    Args:
        voxel_size: metres.
        channels: C of `values`.
        device: where it lives.
        dtype: float32, or float64 for tests.

    Attributes:
        grid: the bricks that were observed.
        passed: a grid of the bricks that were looked through, which has no values.
        values: ``[V, C]``.
        evidence: ``[V]``.

    Example:
        >>> memory = FeatureMemory(voxel_size=0.2, channels=3)
        >>> rows = memory.rows(torch.tensor([[0, 0, 2]]))
        >>> memory.write(rows, torch.ones(64, 3), torch.full((64,), 1e3))
        >>> shown = memory.render(torch.tensor([[0.3, 0.3, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]]))
        >>> round(shown.opacity.item(), 2), round(shown.depth.item(), 1), shown.features.shape
        (1.0, 1.5, torch.Size([1, 3]))
    """

    def __init__(
        self,
        voxel_size: float,
        channels: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.grid = SparseGrid(voxel_size, device=device)
        self.passed = SparseGrid(voxel_size, device=device)
        self.values = torch.zeros(0, channels, device=device, dtype=dtype)
        self.evidence = torch.zeros(0, device=device, dtype=dtype)

    @property
    def voxel_size(self) -> float:
        """Metres."""
        return self.grid.voxel_size

    @property
    def channels(self) -> int:
        return self.values.shape[1]

    @property
    def device(self) -> torch.device:
        return self.values.device

    def rows(
        self,
        bricks: Tensor,  # [K, 3] int32, each once
    ) -> Tensor:  # [64 K] int64
        """The value rows of bricks, which are allocated with zeros where they are missing."""
        missing = bricks[self.grid.lookup(bricks * SparseGrid.edge) < 0]
        if missing.shape[0]:
            self.grid.insert(missing)
            new = missing.shape[0] * BRICK_VOLUME
            self.values = F.pad(self.values, (0, 0, 0, new))
            self.evidence = F.pad(self.evidence, (0, new))
        first = self.grid.lookup(bricks * SparseGrid.edge)
        return (first[:, None] + torch.arange(BRICK_VOLUME, device=self.device)).reshape(-1)

    def write(
        self,
        rows: Tensor,  # [K] int64, each once
        values: Tensor,  # [K, C]
        evidence: Tensor,  # [K]
    ) -> None:
        """Replaces what the rows hold; gradients flow to what is written, and to what was there before."""
        self.values = self.values.index_copy(0, rows, values)
        self.evidence = self.evidence.index_copy(0, rows, evidence)

    def extended(
        self,
        bricks: Tensor,  # [K, 3] int32, none of them allocated
        values: Tensor,  # [64 K, C]
        evidence: Tensor,  # [64 K]
    ) -> FeatureMemory:
        """A memory with more bricks; this one stays as it is."""
        other = FeatureMemory(self.voxel_size, self.channels, self.device, self.values.dtype)
        other.grid = SparseGrid.from_bricks(torch.cat((self.grid.brick_coordinates, bricks)), self.voxel_size)
        other.passed = self.passed
        other.values = torch.cat((self.values, values))
        other.evidence = torch.cat((self.evidence, evidence))
        return other

    def confidence(self) -> Tensor:  # [V] 0..1
        """How much a place's values are worth: 0 where nothing was observed, 1/2 after one pixel."""
        return self.evidence / (1 + self.evidence)

    def density(self) -> Tensor:  # [V] per metre
        """Density of matter at the lattice points, 0 where nothing was observed or proposed."""
        density = F.softplus(self.values[:, 0]) * (OPTICAL_DEPTH / self.voxel_size)
        return torch.where(self.evidence > 0, density, 0.0)

    def render(
        self,
        origins: Tensor,  # [R, 3] metres
        directions: Tensor,  # [R, 3] unit
        min_transmittance: float = MIN_TRANSMITTANCE,
        image_width: int = 0,
    ) -> Rendered:
        """Volume rendering of the features along rays: ``sum_k w_k f(t_k)``, as `evoworld.ops.volume_render` has it.

        Args:
            origins: `[R, 3]` metres.
            directions: `[R, 3]` unit.
            min_transmittance: where a ray ends; 0: never, and the result is exact.
            image_width: pixels in a row where the rays are an image's pixels, row by row.

        Returns:
            `Rendered(features [R, C], depth [R], opacity [R])`: all channels but the logit, and the confidence last,
            not divided by opacity; depth in metres, divided by it. Gradients to `values`, origins and directions.
        """
        features = torch.cat((self.values[:, 1:], self.confidence()[:, None]), 1)
        features, depth, opacity = volume_render(
            features,
            self.density(),
            origins,
            directions,
            self.grid,
            NEAR,
            FAR,
            self.voxel_size / STEPS_PER_VOXEL,
            min_transmittance,
            image_width=image_width,
        )
        return Rendered(features, depth / opacity.clamp_min(1e-6), opacity)

    def tensors(self) -> dict[str, Tensor]:
        """What a file must hold of the memory; `restore` takes it back."""
        return {
            "brick_coordinates": self.grid.brick_coordinates,
            "passed_bricks": self.passed.brick_coordinates,
            "values": self.values.detach(),
            "evidence": self.evidence.detach(),
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes over what `tensors` gave."""
        self.grid = SparseGrid.from_bricks(tensors["brick_coordinates"], self.voxel_size)
        self.passed = SparseGrid.from_bricks(tensors["passed_bricks"], self.voxel_size)
        self.values, self.evidence = tensors["values"], tensors["evidence"]

    def __repr__(self) -> str:
        return f"FeatureMemory({self.grid.num_bricks} bricks of {self.voxel_size:g} m voxels, {self.channels} channels)"
