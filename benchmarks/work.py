"""How much a volume_render case has to do, counted from where the samples of some of its rays fall."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evoworld import reference

MULTIPLY_ADD = 2


@dataclass(frozen=True)
class March:
    """What `volume_render` renders, besides rays."""

    features: Tensor  # [V, C]
    density: Tensor  # [V]
    grid: Any  # SparseGrid
    near: float
    far: float
    step: float

    @property
    def arguments(self) -> tuple[float, float, float]:
        return self.near, self.far, self.step


@dataclass(frozen=True)
class Work:
    """Samples before the surface: those in allocated cells, and of these the ones that weigh something."""

    density_samples: float
    feature_samples: float

    def flops(self, channels: int) -> float:
        """8 multiply-adds for the density of each sample, and 8 C more for each whose weight is not zero."""
        return (self.density_samples + self.feature_samples * channels) * 8 * MULTIPLY_ADD


def bytes_of_render(march: March, num_rays: int, out_bytes_per_ray: int) -> int:
    """The grid's values read once, every ray read and written. (Which voxels are seen is not counted: all of them.)"""
    return march.features.nbytes + march.density.nbytes + num_rays * (24 + out_bytes_per_ray)


def count_samples(march: March, origins: Tensor, directions: Tensor, num_rays: int) -> Work:
    """What `num_rays` rays like these cost."""
    samples = torch.arange(math.ceil((march.far - march.near) / march.step), device=origins.device)
    t = march.near + (samples + 0.5) * march.step
    points = origins[:, None] + t[:, None] * directions[:, None]
    lattice = ((points - points.new_tensor(march.grid.origin)) / march.grid.voxel_size).floor().int()
    corners = torch.cartesian_prod(*[torch.arange(2, dtype=torch.int32, device=origins.device)] * 3)
    rows = torch.stack([march.grid.lookup(lattice + corner) for corner in corners], dim=-1)
    allocated = (rows >= 0).any(-1)
    visible = ((rows >= 0) & (march.density[rows.clamp(min=0)] > 0)).any(-1)
    found = reference.volume_render(march.features, march.density, origins, directions, march.grid, *march.arguments)
    stop = torch.where(found[2] > 0.5, found[1] / found[2].clamp(min=0.5), math.inf)[:, None]
    before = t < stop + march.grid.voxel_size
    scale = num_rays / len(origins)
    return Work((allocated & before).sum().item() * scale, (visible & before).sum().item() * scale)
