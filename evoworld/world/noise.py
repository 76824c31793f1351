"""Noise that looks like panoramas from afar: as smooth, as grey, and as alike from frame to frame."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from evoworld.geometry import Panorama

# Shares of the variance of colour and of depth by scale, the spacing of a lattice in radii of the sphere (0: each pixel
# for itself; infinite: all alike). Rounded from what octaves of 240 frames of procedural walks have, 64 x 128.
SCALES = (
    (0.0, 0.08, 0.03),
    (0.15, 0.09, 0.04),
    (0.3, 0.11, 0.06),
    (0.6, 0.14, 0.10),
    (1.2, 0.20, 0.17),
    (2.4, 0.17, 0.27),
    (math.inf, 0.21, 0.33),
)
GREY = 0.85  # share of the variance that the three colours have in common
LASTING = 0.75  # share that all frames have in common


def panorama_noise(
    num_frames: int,
    height: int,
    generator: torch.Generator | None = None,
) -> Tensor:  # [T, H, 2H, 4]
    """Gaussian noise of unit variance for RGB-D panoramas, without seam and poles, correlated as panoramas are.

    A flow that starts at white noise must first learn to see past it: noise of neighbouring pixels and frames is
    independent, what they show is not. Of noise with the covariance of the data the best linear guess of the data is a
    multiple. Smooth noise is that of random lattices in space, interpolated at the directions of the pixels.

    Args:
        num_frames: T; what is common to them stays in its direction.
        height: H.
        generator: of the numbers; the noise is on its device.

    Source: Perlin 1985, "An image synthesizer" (octaves of lattice noise); noise that frames share as in Ge et al.
    2023, "Preserve your own correlation".

    Example:
        >>> noise = panorama_noise(2, 16, torch.Generator().manual_seed(0))
        >>> noise.shape
        torch.Size([2, 16, 32, 4])
    """
    device = "cpu" if generator is None else generator.device
    directions = Panorama(height, 2 * height).directions(device=device).reshape(-1, 3)
    noise = torch.zeros(1 + num_frames, 5, height, 2 * height, device=device)
    for spacing, colour, depth in SCALES:
        octave = _lattice_noise(len(noise) * 5, directions, spacing, generator).view_as(noise)
        share = noise.new_tensor((GREY * colour, *(3 * ((1 - GREY) * colour,)), depth))
        noise += share.sqrt().view(-1, 1, 1) * octave
    noise = math.sqrt(LASTING) * noise[:1] + math.sqrt(1 - LASTING) * noise[1:]
    return torch.cat((noise[:, :1] + noise[:, 1:4], noise[:, 4:]), 1).movedim(1, -1)


def _lattice_noise(
    count: int,
    directions: Tensor,  # [N, 3] unit
    spacing: float,
    generator: torch.Generator | None,
) -> Tensor:  # [count, N]
    """Fields of unit variance at every direction, interpolated from lattices that lie anywhere."""
    device = directions.device
    if spacing == 0:
        return torch.randn(count, len(directions), generator=generator, device=device)
    if math.isinf(spacing):
        return torch.randn(count, 1, generator=generator, device=device).expand(-1, len(directions))
    cells = math.ceil(2 / spacing) + 1
    values = torch.randn(1, count, *3 * (cells + 1,), generator=generator, device=device)
    place = (directions + 1) / spacing + torch.rand(3, generator=generator, device=device)  # 0..cells
    grid = (2 * place / cells - 1).view(1, 1, 1, -1, 3)
    field = F.grid_sample(values, grid, align_corners=True)[0, :, 0, 0]
    rest = place.frac()
    return field / ((1 - rest).square() + rest.square()).prod(-1).sqrt()
