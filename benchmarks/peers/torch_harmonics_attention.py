"""NVIDIA's torch-harmonics: AttentionS2 and NeighborhoodAttentionS2, with projections that change nothing.

Its grid has rows at the poles. With one head of 64 channels, as in the library's own benchmark, the projections are a
hundredth of the work.
"""

import math

import torch
from torch import Tensor
from torch_harmonics import AttentionS2, NeighborhoodAttentionS2

from benchmarks.attention import Sphere, Tokens

CHANNELS = 64
WIDENED = 1.001  # what the library multiplies a cutoff by


class Layer:
    """One of the library's layers as attention between tokens [1, 1, L, CHANNELS]."""

    def __init__(self, height: int, dtype: torch.dtype, device: str, radius: float | None = None) -> None:
        shape = self.shape = height, 2 * height
        arguments = {"in_channels": CHANNELS, "num_heads": 1, "in_shape": shape, "out_shape": shape, "bias": False}
        if radius is None:
            layer = AttentionS2(**arguments)
            log_weight = layer.log_quad_weights
        else:
            layer = NeighborhoodAttentionS2(**arguments, theta_cutoff=radius / WIDENED)
            log_weight = layer.quad_weights.log().repeat_interleave(shape[1])
        identity = torch.eye(CHANNELS)[..., None, None]
        with torch.no_grad():
            for weights in (layer.q_weights, layer.k_weights, layer.v_weights, layer.proj_weights):
                weights.copy_(identity)
        self.layer = layer.to(device=device, dtype=dtype).requires_grad_(False)
        zonal = torch.zeros(1, 1)  # P_0 of strength 0: no bias by angle
        self.sphere = Sphere(*(x.to(device) for x in (grid_directions(*shape), zonal, log_weight.flatten().float())))

    def __call__(self, tokens: Tokens) -> Tensor:
        query, key, value = (x.view(1, *self.shape, CHANNELS).permute(0, 3, 1, 2) for x in tokens.inputs[:3])
        return self.layer(query, key, value).flatten(2).mT[:, None]


def grid_directions(height: int, width: int) -> Tensor:  # [height * width, 3]
    """Unit directions of the library's equiangular grid: rows from pole to pole, both included."""
    colatitude = torch.linspace(0, math.pi, height, dtype=torch.float64)[:, None]
    longitude = torch.arange(width, dtype=torch.float64) * (2 * math.pi / width)
    x, y = colatitude.sin() * longitude.cos(), colatitude.sin() * longitude.sin()
    return torch.stack([x, y, colatitude.cos().expand_as(x)], -1).view(-1, 3).float()
