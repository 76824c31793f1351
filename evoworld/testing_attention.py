"""The table of cases of sphere_attention, for the rule of `evoworld.testing`.

A radius is moved to where no two tokens are within rounding of it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .geometry import Panorama
from .reference.sphere_attention import chord2, max_chord2


@dataclass(frozen=True)
class AttentionCase:
    """One call of `sphere_attention`: ``build()`` makes its arguments by name, the same ones each time."""

    op: ClassVar[str] = "sphere_attention"

    name: str
    dtype: torch.dtype = torch.float32  # of query, key and value; all else is float32
    batch: int = 1
    heads: int = 2
    queries: str | int = 37  # directions: how many random ones, or "8x16" of a panorama, or see directions_of()
    keys: str | int = 53
    width: int = 16
    value_width: int = 16
    degree: int | None = 1  # of zonal
    kappa: float = 2.0  # size of zonal's strengths
    log_weight: str | None = "area"  # "area" (log cos latitude), "masked" (some -inf), "all masked"
    radius: float | None = None
    scale: float | None = None
    layout: str = "contiguous"  # "projection" ([B, L, N, D] with axes swapped), "expanded", "misaligned" or "strided"
    size: float = 1.0  # of query's and key's entries

    def rounding(self, name: str, dtype: torch.dtype, truth: dict[str, Tensor]) -> float:
        """What one rounding may change of a result.

        Probabilities may be rounded to the inputs' dtype before they meet the values, and a bias in half precision may
        be split into parts that are good to 2^-17. A backward knows the probabilities by lse alone, which is a float32;
        and where it sums over all queries its terms, as large as ``d_output . value``, cancel.
        """
        size, single = largest_finite(truth[name]), torch.finfo(torch.float32).eps
        if name == "1":  # lse
            return size * (single if self.dtype == torch.float32 else 2.0**-17)
        rounding = size * torch.finfo(self.dtype).eps
        if name.startswith("d_"):
            rounding += size * single * largest_finite(truth["1"]) / 4
        if name in ("d_zonal", "d_key_log_weight"):
            queries = truth["1"].numel() / self.heads
            rounding += single * (queries * self.value_width) ** 0.5
        return rounding

    def build(self) -> dict[str, object]:
        """The op's arguments by name."""
        draw = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))
        x, y = directions_of(self.queries, draw), directions_of(self.keys, draw)

        def rows(count: int, width: int, size: float) -> Tensor:
            numbers = size * torch.randn(self.batch, self.heads, count, width, generator=draw)
            return _laid_out(self.layout, numbers.to(self.dtype))

        zonal = None
        if self.degree is not None:
            zonal = self.kappa * (2 * torch.rand(self.heads, self.degree + 1, generator=draw) - 0.5)
        return {
            "query": rows(len(x), self.width, self.size),
            "key": rows(len(y), self.width, self.size),
            "value": rows(len(y), self.value_width, 1.0),
            "query_directions": x,
            "key_directions": y,
            "zonal": zonal,
            "key_log_weight": _log_weight(self.log_weight, y),
            "radius": None if self.radius is None else _clear_radius(self.radius, x, y),
            "scale": self.scale,
            "return_lse": True,
        }


def largest_finite(x: Tensor) -> float:
    return x.masked_fill(x.isinf(), 0).abs().max().item() if x.numel() else 0.0


def directions_of(what: str | int, draw: torch.Generator) -> Tensor:  # [L, 3]
    """Unit vectors: ``n`` random ones, ``"HxW"`` a panorama's pixels, ``"axes"`` poles and antipodes, ``"point"``
    the same one many times, ``"cap"`` many within a few degrees."""
    if isinstance(what, int):
        return normalize(torch.randn(what, 3, generator=draw), dim=-1)
    if what == "axes":
        return torch.cat([torch.eye(3), -torch.eye(3)]).repeat(3, 1)
    if what == "point":
        return torch.tensor([[0.0, 0.6, 0.8]]).repeat(19, 1)
    if what == "cap":
        return normalize(torch.tensor([0.0, 0.6, 0.8]) + 0.03 * torch.randn(41, 3, generator=draw), dim=-1)
    height, width = map(int, what.split("x"))
    return Panorama(height, width).directions().view(-1, 3)


def _laid_out(layout: str, rows: Tensor) -> Tensor:  # [B, N, L, D]
    """The same numbers, or where they are to be expanded those of the first head, in another place."""
    batch, heads, count, width = rows.shape
    if layout == "projection":
        return rows.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "expanded":
        return rows[:, :1].expand(-1, heads, -1, -1)
    if layout == "misaligned":
        memory = rows.new_empty(rows.numel() + 1)
        return memory[1:].view(rows.shape).copy_(rows)
    if layout == "strided":  # every other row of a wider projection, every other column
        return rows.new_empty(batch, heads, 2 * count, 2 * width + 3)[:, :, ::2, : 2 * width : 2].copy_(rows)
    return rows


def _log_weight(what: str | None, y: Tensor) -> Tensor | None:  # [S]
    if what is None:
        return None
    weight = (1 - y[:, 1].square()).clamp_min(1e-4).sqrt().log()
    if what == "masked":
        weight[::3] = -torch.inf
    elif what == "all masked":
        weight[:] = -torch.inf
    return weight


def _clear_radius(radius: float, x: Tensor, y: Tensor) -> float:
    """The radius near the wanted one, by up to 5%, that is furthest from every pair's distance."""
    tried = radius * torch.linspace(0.95, 1.05, 401, dtype=torch.float64)
    limits = torch.tensor([max_chord2(r) for r in tried.tolist()], dtype=torch.float64)
    pairs = chord2(x.double(), y.double()).flatten()
    margin = (limits[:, None] - pairs).abs().amin(1) if len(pairs) else torch.ones(len(tried))
    return tried[margin.argmax()].item()


def _cases(*variants: dict) -> dict[str, AttentionCase]:
    return {variant["name"]: replace(AttentionCase(""), **variant) for variant in variants}


_HALF, _BFLOAT = torch.float16, torch.bfloat16

ATTENTION_CASES: dict[str, AttentionCase] = _cases(
    {"name": "small"},
    {"name": "no_bias", "degree": None, "log_weight": None},
    {"name": "log_weight_alone", "degree": None},
    {"name": "zonal_alone", "log_weight": None},
    *({"name": f"degree_{k}", "degree": k, "heads": 3} for k in (0, 2, 3)),
    *(
        {"name": f"width_{d}_{dv}", "width": d, "value_width": dv, "queries": 70, "keys": 67}
        for d, dv in ((64, 64), (128, 128), (32, 96), (96, 32), (17, 16), (16, 41), (72, 80), (127, 65))
    ),
    *({"name": f"half_{d}", "dtype": _HALF, "width": d, "value_width": d} for d in (16, 40, 64, 128)),
    *({"name": f"bfloat16_{d}", "dtype": _BFLOAT, "width": d, "value_width": d} for d in (16, 40, 64, 128)),
    *({"name": f"bfloat16_degree_{k}", "dtype": _BFLOAT, "degree": k} for k in (2, 3)),
    {"name": "half_degree_3", "dtype": _HALF, "degree": 3},
    {"name": "half_masked", "dtype": _HALF, "log_weight": "masked"},
    {"name": "panorama", "queries": "8x16", "keys": "8x16", "batch": 2, "width": 32, "value_width": 32},
    {"name": "panorama_of_another_size", "queries": "6x12", "keys": "10x20"},
    {"name": "many_keys", "queries": 130, "keys": 517, "heads": 1},
    {"name": "many_queries", "queries": 517, "keys": 130, "heads": 1},
    {"name": "as_many_keys_elsewhere", "queries": 64, "keys": 64, "degree": 3},
    {"name": "one_query", "queries": 1},
    {"name": "one_key", "keys": 1},
    {"name": "no_queries", "queries": 0},
    {"name": "no_keys", "keys": 0},
    {"name": "no_batch", "batch": 0},
    {"name": "poles_and_antipodes", "queries": "axes", "keys": "axes", "degree": 3, "log_weight": None},
    {"name": "duplicates", "queries": "point", "keys": "point"},
    {"name": "concentrated", "kappa": 50.0, "queries": "8x16", "keys": "8x16"},
    {"name": "bfloat16_concentrated", "kappa": 50.0, "queries": "8x16", "keys": "8x16", "dtype": _BFLOAT},
    {"name": "large_logits", "size": 6.0},
    {"name": "negative_scale", "scale": -0.5},
    {"name": "scale_zero", "scale": 0.0},
    {"name": "masked_keys", "log_weight": "masked"},
    {"name": "all_keys_masked", "log_weight": "all masked"},
    {"name": "projection", "layout": "projection", "batch": 2, "heads": 3},
    {"name": "expanded", "layout": "expanded", "batch": 2},
    {"name": "misaligned", "layout": "misaligned", "width": 32},
    {"name": "misaligned_bfloat16", "layout": "misaligned", "width": 32, "dtype": _BFLOAT},
    {"name": "strided", "layout": "strided"},
    {"name": "radius", "queries": "8x16", "keys": "8x16", "radius": 0.6, "batch": 2},
    {"name": "radius_as_many_keys_elsewhere", "queries": 64, "keys": 64, "radius": 1.2},
    {"name": "radius_wide", "queries": 150, "keys": "10x20", "radius": 2.5},
    {"name": "radius_of_another_size", "queries": "6x12", "keys": "16x32", "radius": 0.35, "degree": 2},
    {"name": "radius_bfloat16", "queries": "12x24", "keys": "12x24", "radius": 0.5, "dtype": _BFLOAT, "width": 64},
    {
        "name": "radius_half_projection",
        "queries": 90,
        "keys": 200,
        "radius": 0.7,
        "dtype": _HALF,
        "layout": "projection",
    },
    {"name": "radius_small", "queries": "cap", "keys": "cap", "radius": 0.02},
    {"name": "radius_leaves_some_alone", "queries": 60, "keys": "cap", "radius": 0.8},
    {"name": "radius_leaves_all_alone", "queries": "point", "keys": 5, "radius": 1e-3},
    {"name": "radius_zero", "queries": "point", "keys": "point", "radius": 0.0},
    {"name": "radius_masked_keys", "queries": 60, "keys": 90, "radius": 0.9, "log_weight": "masked"},
)
