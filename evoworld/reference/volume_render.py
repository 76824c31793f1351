"""volume_render in plain PyTorch: the specification of every backend."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .sparse_grid import cell_corners, lattice_coordinates

_CHUNK_RAYS = 1024
_CHUNK_VALUES = 1 << 23  # corner values gathered at once: 32 MB in float32


def volume_render(
    features: Tensor,  # [V, C]
    density: Tensor,  # [V] 1/m
    origins: Tensor,  # [R, 3] metres
    directions: Tensor,  # [R, 3]
    grid,  # a SparseGrid
    near: float,  # metres
    far: float,  # metres
    step: float,  # metres
    min_transmittance: float = 1e-4,
    jitter: Tensor | None = None,  # [R] in steps, default 0.5
    image_width: int = 0,  # a hint for GPU kernels, no part of the mathematics
) -> tuple[Tensor, Tensor, Tensor]:  # [R, C], [R], [R]
    """Features, depth and opacity that each ray gathers on its way through the grid.

    Samples lie at ``t_k = near + (k + jitter) * step < far``. Density and features at ``t_k`` are trilinear in the 8
    lattice points around it, with zero where nothing is allocated. With ``x_k = density(t_k) * step``::

        alpha_k = 1 - exp(-x_k)      T_k = prod_{j<k} (1 - alpha_j)      w_k = T_k alpha_k
        features = sum_k w_k f(t_k)      depth = sum_k w_k t_k      opacity = sum_k w_k

    The first sample with ``T_k < min_transmittance`` ends the ray: it and all later ones contribute nothing. Densities
    may be negative; the formulas hold as they stand. Features come back in their own dtype, the rest in density's.

    The gradient, as kernels compute it without storing samples: with ``q_k = d_features . f(t_k) + d_depth t_k +
    d_opacity`` the loss changes by ``sum_k q_k dw_k``. As ``w_k = T_k - T_{k+1}`` and ``T_{k+1} = T_k exp(-x_k)``,
    raising ``x_k`` adds ``T_{k+1}`` to ``w_k`` and takes ``w_j`` from every later ``w_j``::

        d_x_k = T_{k+1} q_k - S_k,      S_k = sum_{j>k} w_j q_j = (sum_j w_j q_j) - (sum_{j<=k} w_j q_j)

    The total is ``d_features . features + d_depth depth + d_opacity opacity`` of the forward, the prefix grows front to
    back, and nothing is divided by ``1 - alpha``. With ``a_c`` the corners' weights, ``F_c`` their features and
    ``sigma_c`` their densities::

        d_density[c] += a_c step d_x_k      d_features[c] += a_c w_k d_features
        d_g_k = sum_c (step d_x_k sigma_c + w_k d_features . F_c) grad a_c(g_k)
        d_origins = sum_k d_g_k / voxel_size      d_directions = sum_k t_k d_g_k / voxel_size

    A sample of zero density has no weight but still a density gradient. Which samples are used is held fixed, and
    ``jitter`` gets no gradient.
    """
    channels = features.shape[1]
    zero_row = density.new_zeros(1, channels + 1)  # where the rows of unallocated corners, -1, point to
    table = torch.cat([torch.cat([features.to(density.dtype), density[:, None]], dim=1), zero_row])
    jitter = density.new_full(origins.shape[:1], 0.5) if jitter is None else jitter.detach()
    earliest = jitter.min().item() if jitter.numel() else 0.0
    num_samples = max(1, math.ceil((far - near) / step - earliest) + 1)  # one to spare: those beyond far are masked
    chunk_samples = max(1, _CHUNK_VALUES // (_CHUNK_RAYS * 8 * (channels + 1)))

    outputs = []
    chunks = (x.split(_CHUNK_RAYS) for x in (origins, directions, jitter))
    for o, d, j in zip(*chunks, strict=True):
        gathered = density.new_zeros(o.shape[0], channels)
        depth, opacity, optical_depth = density.new_zeros(3, o.shape[0]).unbind(0)
        alive = torch.ones_like(opacity, dtype=torch.bool)
        for first in range(0, num_samples, chunk_samples):
            k = torch.arange(first, min(first + chunk_samples, num_samples), device=o.device, dtype=o.dtype)
            t = torch.addcmul(o.new_tensor(near), k + j[:, None], o.new_tensor(step))  # [rays, samples]
            rows, corner_weights = cell_corners(lattice_coordinates(o[:, None], d[:, None], t, grid), grid)
            values = (corner_weights[..., None] * table[rows]).sum(-2)

            x = torch.where(t < far, values[..., -1] * step, 0)
            passed = optical_depth[:, None] + torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1].cumsum(1)], dim=1)
            transmittance = torch.exp(-passed)
            used = alive[:, None] & (transmittance.detach() >= min_transmittance).long().cumprod(1).bool()
            w = torch.where(used, transmittance * -torch.expm1(-x), 0)

            gathered = gathered + (w[..., None] * values[..., :-1]).sum(1)
            depth = depth + (w * t).sum(1)
            opacity = opacity + w.sum(1)
            optical_depth = passed[:, -1] + x[:, -1]
            alive = used[:, -1]
        outputs.append((gathered.to(features.dtype), depth, opacity))
    gathered, depth, opacity = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    return gathered, depth, opacity
