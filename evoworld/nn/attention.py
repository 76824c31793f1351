"""SphericalAttention: multi-head self-attention over the tokens of a panorama."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from evoworld.ops import sphere_attention
from evoworld.ops.library import check, check_tensor
from evoworld.ops.sphere_attention import check_radius

from .encoding import SphericalRotaryEmbedding

_CACHED_GRIDS = 16  # a few sizes on a few devices
_SMALLEST_COSINE = 1e-7  # a direction that rounds to a pole still has a pixel, and a finite weight


class SphericalAttention(nn.Module):
    """Multi-head self-attention that knows where its tokens lie on the sphere.

    With P_l the Legendre polynomials, x the directions of the tokens and ``zonal [num_heads, K + 1]`` learned::

        q, k, v = split(qkv(tokens))
        s_ij = q_i . k_j / sqrt(D) + sum_l zonal[n, l] P_l(x_i . x_j) + log(area_j)
        output = out(softmax(s) v)

    The weights by area make the sum over tokens an integral over the sphere, whatever the latitude. Turning the
    panorama about its vertical axis turns the output alike. ``zonal`` starts at zero: before training this is plain
    attention, weighted by area.

    Args:
        dim: channels C of the tokens.
        num_heads: N; ``D = dim / num_heads`` is an integer from 16 to 128.
        zonal_degree: K, at most 3; None: no bias by angle, and no parameter for it.
        area_weighted: whether keys count by their solid angle, taken as cos(latitude), as an equirectangular grid's do.
        radius: tokens further away on the great circle, in radians, are not attended to; None: all are.
        rotary: rotates queries and keys by their directions; its head_dim is D. It may be shared by modules.
        bias: whether the two projections add one.

    Shape: tokens ``[B, T, H, W, C]``, frames of an equirectangular grid, each attended to by itself; or ``[B, L, C]``
    with unit ``directions [L, 3]`` in camera axes (float32 or float64), and optionally ``key_log_weight [L]`` in place
    of the weights by latitude, for tokens that are no such grid. The result has the shape of tokens.

    Raises:
        ValueError: for a size or shape that does not fit; see `evoworld.ops.sphere_attention` too.

    Example:
        >>> attention = SphericalAttention(dim=64, num_heads=4)
        >>> video = torch.randn(1, 2, 8, 16, 64)
        >>> turned = attention(video.roll(3, 3))
        >>> torch.allclose(turned, attention(video).roll(3, 3), atol=1e-5)
        True
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        zonal_degree: int | None = 1,
        area_weighted: bool = True,
        radius: float | None = None,
        rotary: SphericalRotaryEmbedding | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        check(op, num_heads >= 1 and dim % num_heads == 0, "dim", f"a multiple of num_heads = {num_heads}", dim)
        check(op, 16 <= dim // num_heads <= 128, "dim", f"16 to 128 channels for each of {num_heads} heads", dim)
        if rotary is not None:
            check(op, rotary.head_dim == dim // num_heads, "rotary", f"head_dim {dim // num_heads}", rotary.head_dim)
        self.num_heads = num_heads
        self.area_weighted = area_weighted
        check_radius(op, radius)
        self.radius = radius
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)
        self.zonal = zonal_parameter(op, num_heads, zonal_degree)
        self.rotary = rotary

    def forward(
        self,
        tokens: Tensor,  # [B, T, H, W, C] or [B, L, C]
        directions: Tensor | None = None,  # [L, 3]
        key_log_weight: Tensor | None = None,  # [L]
    ) -> Tensor:  # [B, T, H, W, C] or [B, L, C]
        op, dim = type(self).__name__, self.out.out_features
        grid = tokens.ndim == 5
        check_tensor(op, "tokens", tokens, ("B", "T", "H", "W", dim) if grid else ("B", "L", dim))
        if grid:
            check(op, directions is None, "directions", "None with tokens [B, T, H, W, C]", "a tensor")
            directions, log_area = panorama_grid(*tokens.shape[2:4], tokens)
        else:
            check_tensor(op, "directions", directions, (tokens.shape[1], 3), tokens)
        if self.area_weighted and key_log_weight is None:
            key_log_weight = log_area if grid else area_log_weight(directions)

        rows = tokens.flatten(0, 1).flatten(1, 2) if grid else tokens  # [B T, L, C]
        query, key, value = self.qkv(rows).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if self.rotary is not None:
            query, key = self.rotary(query, directions), self.rotary(key, directions)
        output = sphere_attention(
            query, key, value, directions, directions, self.zonal, key_log_weight, self.radius
        )  # [B T, N, L, D]
        return self.out(output.transpose(1, 2).flatten(2)).view(tokens.shape)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, area_weighted={self.area_weighted}, radius={self.radius}"


def zonal_parameter(op: str, num_heads: int, zonal_degree: int | None) -> nn.Parameter | None:
    """Strengths [num_heads, zonal_degree + 1] of a bias by angle, all zero."""
    if zonal_degree is None:
        return None
    check(op, zonal_degree in (0, 1, 2, 3), "zonal_degree", "None or 0 to 3", repr(zonal_degree))
    return nn.Parameter(torch.zeros(num_heads, zonal_degree + 1))


def area_log_weight(
    directions: Tensor,  # [L, 3] unit
) -> Tensor:  # [L]
    """Logarithm of what a pixel of an equirectangular grid in each direction covers: cos(latitude) over its mean."""
    cosine = torch.linalg.vector_norm(directions.detach()[:, ::2], dim=-1).clamp(min=_SMALLEST_COSINE)
    return cosine.log() - cosine.mean().log()


def panorama_grid(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Directions [H W, 3] float64 and area_log_weight [H W] of an equirectangular grid, of pixels of any proportion.

    On the device of ``like``. Cached and shared, do not write into them; where a graph is being traced they are made
    anew.
    """
    traced = torch.compiler.is_compiling() or is_fake(like)
    return (_make_grid if traced else _cached_grid)(height, width, like.device)


def _make_grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    # Metal has no float64: it is computed on the CPU.
    longitude = ((torch.arange(width, dtype=torch.float64) + 0.5) / width - 0.5) * (2 * torch.pi)
    latitude = (0.5 - (torch.arange(height, dtype=torch.float64) + 0.5) / height) * torch.pi
    latitude, longitude = torch.meshgrid(latitude, longitude, indexing="ij")
    x, y, z = latitude.cos() * longitude.sin(), -latitude.sin(), latitude.cos() * longitude.cos()
    directions = torch.stack((x, y, z), -1).flatten(0, 1)
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return directions.to(device, dtype), area_log_weight(directions).to(device, torch.float32)


@lru_cache(maxsize=_CACHED_GRIDS)
def _cached_grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # an inference tensor in the cache would break autograd later
        return _make_grid(height, width, device)
