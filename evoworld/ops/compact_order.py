"""An order of directions in which neighbours lie near each other: what tiles of tokens are made of."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .library import NATIVE, define

_BITS = 7  # cells along a side of the square: finer than any tile of tokens need be compact


def compact_order(directions: Tensor) -> Tensor:  # [L, 3] unit -> [L] int32
    """The permutation that visits directions along a Hilbert curve on the sphere.

    The sphere is unfolded into an octahedron and that into a square, a continuous map back, so directions that follow
    each other on the curve through the square are near each other on the sphere. Directions of one cell keep their
    order.

    Source: octahedral map, Praun and Hoppe, "Spherical parametrization and remeshing", 2003; Hilbert, 1891.

    Example:
        >>> east, north, west = [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]
        >>> order = compact_order(torch.tensor([east, west, north, east]))
        >>> order.dtype, (order == 0).int().argmax().item() - (order == 3).int().argmax().item()
        (torch.int32, -1)
    """
    return torch.ops.evoworld.compact_order(directions)


def _compact_order(directions):
    x, y, z = (directions / directions.abs().sum(-1, keepdim=True)).unbind(-1)
    # The lower half of the octahedron is folded out over the corners of the square.
    below = z < 0
    u = torch.where(below, (1 - y.abs()) * _sign(x), x)
    v = torch.where(below, (1 - x.abs()) * _sign(y), y)
    side = 1 << _BITS
    column, row = (((w + 1) * (side / 2)).long().clamp_(0, side - 1) for w in (u, v))
    position = _hilbert_positions(directions.device)[row * side + column]
    return torch.argsort(position, stable=True).int()


def _sign(x: Tensor) -> Tensor:
    return torch.where(x < 0, -1.0, 1.0).to(x)


@lru_cache
def _hilbert_positions(device: torch.device) -> Tensor:  # [side * side], by row * side + column
    """Where on the Hilbert curve each cell of the square lies."""
    side = 1 << _BITS
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    position = torch.zeros_like(x)
    for bit in reversed(range(_BITS)):
        right, upper = (x >> bit) & 1, (y >> bit) & 1
        position += ((3 * right) ^ upper) << (2 * bit)
        # The curve enters each quadrant turned: reflect and transpose to the lowest one's orientation.
        reflected = (upper == 0) & (right == 1)
        x, y = torch.where(reflected, side - 1 - x, x), torch.where(reflected, side - 1 - y, y)
        x, y = torch.where(upper == 0, y, x), torch.where(upper == 0, x, y)
    return position.flatten().to(device)


# An op, so that a compiled function does not make the table again in every call.
define(
    "compact_order(Tensor directions) -> Tensor",
    lambda directions: directions.new_empty(directions.shape[0], dtype=torch.int32),
)
NATIVE.impl("compact_order", _compact_order, "CompositeExplicitAutograd")
