"""Procedural textures: how much of a material's second colour shows at a point of a surface."""

from __future__ import annotations

from enum import IntEnum

import torch


class Pattern(IntEnum):
    """What a material looks like; its period is in metres."""

    PLAIN = 0  # a little uneven, as plaster is
    CHECKS = 1
    PLANKS = 2  # boards of different shades with a grain
    BRICKS = 3
    TILES = 4  # with joints
    STRIPES = 5
    DOTS = 6
    SPECKLES = 7  # foliage, grass, stone
    PICTURE = 8  # patches of colour


def mix(
    pattern: torch.Tensor,  # [...] int64
    period: torch.Tensor,  # [...] metres
    seed: torch.Tensor,  # [...] int64
    u: torch.Tensor,  # [...] metres along the surface
    v: torch.Tensor,  # [...]
    footprint: torch.Tensor,  # [...] metres that a pixel covers
) -> torch.Tensor:  # [...] 0..1
    """The share of the second colour. What is finer than a pixel fades to its mean, so that nothing flickers."""
    x, y, size = u / period, v / period, footprint / period
    share = torch.zeros_like(x)
    for kind, function in _FUNCTIONS.items():
        here = pattern == kind
        if here.any():
            share[here] = function(x[here], y[here], size[here], seed[here])
    return share.clamp(0, 1)


def _plain(x, y, size, seed):  # all in periods: places on the surface and the width of a pixel
    return 0.15 + 0.25 * (noise(x * 0.35, y * 0.35, seed) - 0.5)


def _checks(x, y, size, seed):
    across, along = (1 - 2 * _lines(v / 2, 0.5, size / 2) for v in (x, y))
    return 0.5 - 0.5 * across * along


def _planks(x, y, size, seed):
    plank = (y * 4).floor()
    board = _hash(plank, (x * 0.25 + _hash(plank, plank, seed)).floor(), seed)
    grain = noise(x * 1.5 + 17 * plank, y * 12, seed)
    return _faded(0.55 * board + 0.4 * grain, 0.5, 4 * size)


def _bricks(x, y, size, seed):
    row = (y * 2).floor()
    x = x + 0.5 * row
    joints = (_lines(x, 0.04, size) + _lines(y * 2, 0.08, 2 * size)).clamp_max(1)
    return joints + 0.25 * (_hash(x.floor(), row, seed) - 0.5)


def _tiles(x, y, size, seed):
    joints = (_lines(x, 0.03, size) + _lines(y, 0.03, size)).clamp_max(1)
    return joints + 0.1 * (_hash(x.floor(), y.floor(), seed) - 0.5)


def _stripes(x, y, size, seed):
    return _lines(x, 0.5, size)


def _dots(x, y, size, seed):
    is_dot = (x - x.floor() - 0.5).square() + (y - y.floor() - 0.5).square() < 0.09
    return _faded(is_dot.to(x), 0.28, 2 * size)


def _speckles(x, y, size, seed):
    return _faded(0.6 * noise(x * 2, y * 2, seed) + 0.4 * noise(x * 7, y * 7, seed), 0.5, 4 * size)


def _picture(x, y, size, seed):
    patch = _hash((x * 3 + noise(y * 2, x, seed)).floor(), (y * 3 + noise(x * 2, y, seed)).floor(), seed)
    return _faded(patch, 0.5, size)


_FUNCTIONS = {
    Pattern.PLAIN: _plain,
    Pattern.CHECKS: _checks,
    Pattern.PLANKS: _planks,
    Pattern.BRICKS: _bricks,
    Pattern.TILES: _tiles,
    Pattern.STRIPES: _stripes,
    Pattern.DOTS: _dots,
    Pattern.SPECKLES: _speckles,
    Pattern.PICTURE: _picture,
}


def noise(x: torch.Tensor, y: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """Smooth value noise in 0..1 of one cycle a unit."""
    i, j = x.floor(), y.floor()
    s, t = x - i, y - j
    s, t = s * s * (3 - 2 * s), t * t * (3 - 2 * t)
    low = torch.lerp(_hash(i, j, seed), _hash(i + 1, j, seed), s)
    high = torch.lerp(_hash(i, j + 1, seed), _hash(i + 1, j + 1, seed), s)
    return torch.lerp(low, high, t)


def _hash(i: torch.Tensor, j: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """A number in 0..1 for each cell, the same on every device."""
    mixed = (i.long() * 374761393 + j.long() * 668265263 + seed * 2147483647) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 13)) * 1274126177) & 0xFFFFFFFF
    return ((mixed ^ (mixed >> 16)) & 0xFFFF).to(torch.float32) / 65535


def _lines(x: torch.Tensor, width: float, size: torch.Tensor) -> torch.Tensor:
    """How much of a pixel is covered by lines that begin at whole numbers."""
    half = 0.5 * size.clamp_min(1e-3)
    low, high = ((v := x + side).floor() * width + (v - v.floor()).clamp_max(width) for side in (-half, half))
    return (high - low) / (2 * half)


def _faded(value: torch.Tensor, mean: float, size: torch.Tensor) -> torch.Tensor:
    """A value that varies once a period, or its mean where a pixel is larger than that."""
    return mean + (value - mean) / (1 + (2 * size) ** 2)
