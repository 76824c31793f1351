"""The bias of sphere_attention as a dot product: extra columns of query and key, and the places tiles are cut from.

By the addition theorem P_l(x.y) is a dot product of 2 l + 1 spherical harmonics of x and of y, so zonal bias and log
weight ride on the matrix units. Half precision keeps a number in parts, each the bfloat16 nearest to what the parts
before it left: float16 would overflow, as the columns are divided by the scale that multiplies the logits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import device_of, single
from .matmul import narrow

PLACE_BLOCK = 128  # places are whole blocks: a multiple of every tile
COLUMN_BLOCK = 16  # the least that a matrix product adds up
MASKED = tl.constexpr(-(2.0**125))  # the log weight of a key that counts for nothing: -inf * 0 would be NaN
EMPTY = tl.constexpr(-(2.0**100))  # a logit below this, times log2 e, is of such a key
FAR = tl.constexpr(1.0e3)  # the coordinates of a place without a token: outside of every radius
_SMALLEST_SCALE = 1e-6  # below, a masked logit is no longer below EMPTY
_DEGREES = (1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3)  # of the harmonics, without the constant one


class Columns(NamedTuple):
    """Where a number is found among E columns: harmonic m's parts in m, F + m, 2 F + m, the log weight's after those.

    With a number a = a0 + a1 of the query and b = b0 + b1 of the key, their columns are a0 a0 a1 and b0 b1 b0.
    """

    degree: int
    parts: int  # 1 in float32, 3 in bfloat16
    width: int  # E: 0 or a multiple of COLUMN_BLOCK
    dtype: torch.dtype

    @property
    def harmonics(self) -> int:  # F
        return (self.degree + 1) ** 2 - 1

    @property
    def degrees(self) -> list[int]:
        """The degree of each column's harmonic, 0 for columns that hold none."""
        found = list(_DEGREES[: self.harmonics]) * self.parts
        return found + [0] * (self.width - len(found))


class Places(NamedTuple):
    """The tokens of one side in the order that tiles are cut from, padded to P places that fill whole tiles."""

    order: Tensor | None  # [L] int32: the token of each place; None: its own
    directions: Tensor | None  # [3, P] float32, FAR without a token; None without a radius
    columns: Tensor | None  # [N, P, E], of keys [1, P, E]; None without columns
    head_stride: int  # of columns, 0 if all heads share them
    features: Tensor | None  # [P, E] float32 of queries: what d_zonal weighs sum_j dS_ij columns_j with
    num_places: int  # P
    num_tokens: int  # L


def columns_of(zonal: Tensor | None, key_log_weight: Tensor | None, exact: bool) -> Columns:
    """Which columns a bias takes: in float32 if ``exact``, none if there is no bias."""
    degree = 0 if zonal is None else zonal.shape[1] - 1
    parts, weights, dtype = (1, 1, torch.float32) if exact else (3, 3, torch.bfloat16)
    used = parts * ((degree + 1) ** 2 - 1) + weights
    needed = degree > 0 or key_log_weight is not None
    return Columns(degree, parts, triton.cdiv(used, COLUMN_BLOCK) * COLUMN_BLOCK if needed else 0, dtype)


def split_scale(scale: float) -> tuple[int, float]:
    """(sign, size): queries are multiplied by the sign, which is 0 for a scale of 0; size is positive always."""
    if 0 < abs(scale) < _SMALLEST_SCALE:
        raise ValueError(f"sphere_attention: scale: expected 0 or a size >= {_SMALLEST_SCALE:.0e}, got {scale}")
    return (0, 1.0) if scale == 0 else (1 if scale > 0 else -1, single(abs(scale)))


def query_places(
    directions: Tensor,  # [L, 3]
    order: Tensor | None,  # [L] int32
    zonal: Tensor | None,  # [N, K + 1]
    scale: float,  # the size from split_scale
    columns: Columns,
    with_directions: bool,
    with_features: bool = False,
) -> Places:
    return _places(directions, order, zonal, None, scale, columns, False, with_directions, with_features)


def key_places(
    directions: Tensor,  # [S, 3]
    order: Tensor | None,  # [S] int32
    key_log_weight: Tensor | None,  # [S]
    scale: float,  # the size from split_scale
    columns: Columns,
    with_directions: bool,
) -> Places:
    """Places without a token are masked by their columns."""
    return _places(directions, order, None, key_log_weight, scale, columns, True, with_directions, False)


def _places(directions, order, zonal, log_weight, scale, columns, of_keys, with_directions, with_features) -> Places:
    tokens = directions.shape[0]
    padded = triton.cdiv(tokens, PLACE_BLOCK) * PLACE_BLOCK
    heads = 1 if zonal is None or columns.degree == 0 else zonal.shape[0]
    width = columns.width
    places = Places(
        order,
        directions.new_empty(3, padded) if with_directions else None,
        directions.new_empty(heads, padded, width, dtype=columns.dtype) if width else None,
        padded * width if heads > 1 else 0,
        directions.new_empty(padded, width) if with_features and width else None,
        padded,
        tokens,
    )
    if padded and (width or with_directions):
        with device_of(directions):
            sphere_attention_places_kernel[padded // PLACE_BLOCK, heads](
                directions,
                order,
                zonal,
                log_weight,
                places.directions,
                places.columns,
                places.features,
                tokens,
                padded,
                single(1.0 / scale),
                OF_KEYS=of_keys,
                DEGREE=columns.degree,
                PARTS=columns.parts,
                E=width,
                BLOCK=PLACE_BLOCK,
            )
    return places


@triton.constexpr_function
def degree_of(harmonic):
    return _DEGREES[harmonic]


@triton.jit
def harmonics(
    x,  # [M]
    y,  # [M]
    z,  # [M]
    DEGREE: tl.constexpr,
):
    """F x [M]: real harmonics of degree 1 to DEGREE, scaled so that those of degree l add up to P_l(x.y)."""
    result = ()
    if DEGREE >= 1:
        result += (x, y, z)
    if DEGREE >= 2:
        result += (1.7320508075688772 * x * y, 1.7320508075688772 * y * z, 1.7320508075688772 * z * x)
        result += (0.8660254037844386 * (x * x - y * y), 1.5 * z * z - 0.5)
    if DEGREE >= 3:
        result += (0.6123724356957945 * x * (5.0 * z * z - 1.0), 0.6123724356957945 * y * (5.0 * z * z - 1.0))
        result += (1.9364916731037085 * z * (x * x - y * y), 3.872983346207417 * x * y * z)
        result += (0.7905694150420949 * x * (x * x - 3.0 * y * y), 0.7905694150420949 * y * (3.0 * x * x - y * y))
        result += (0.5 * z * (5.0 * z * z - 3.0),)
    return result


@triton.jit
def high_part(
    number,  # [M]
):
    """The bfloat16 nearest to each number, in float32."""
    return narrow(number, tl.bfloat16).to(tl.float32)


@triton.jit(do_not_specialize=["num_tokens", "num_places", "inverse_scale"])
def sphere_attention_places_kernel(
    directions,  # [L, 3]
    order,  # [L] int32 or None
    zonal,  # [N, K + 1] or None
    log_weight,  # [L] or None
    out_directions,  # [3, P] or None
    out_columns,  # [N, P, E] or None
    out_features,  # [P, E] or None
    num_tokens,
    num_places,
    inverse_scale,
    OF_KEYS: tl.constexpr,
    DEGREE: tl.constexpr,
    PARTS: tl.constexpr,
    E: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # What: the tokens of one side by place: directions, and the columns that hold their share of the bias.
    # Maths: zonal[n, l] P_l(x.y) = sum_m (zonal[n, l] Y_lm(x)) Y_lm(y); queries carry zonal and the scale's inverse.
    # Gradient: d_zonal comes from the columns' own product with dS, see sphere_attention_backward.
    # Mapping: axis 0, blocks of places; axis 1, heads.
    # Memory: directions gathered by order; E numbers a place and head written once.
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1)
    exists = place < num_tokens
    token = place if order is None else tl.load(order + place, mask=exists, other=0)
    x = tl.load(directions + 3 * token, mask=exists, other=0.0)
    y = tl.load(directions + 3 * token + 1, mask=exists, other=0.0)
    z = tl.load(directions + 3 * token + 2, mask=exists, other=0.0)
    if out_directions is not None:
        tl.store(out_directions + place, tl.where(exists, x, FAR))
        tl.store(out_directions + num_places + place, tl.where(exists, y, FAR))
        tl.store(out_directions + 2 * num_places + place, tl.where(exists, z, FAR))
    if E > 0:
        row = (head.to(tl.int64) * num_places + place) * E
        found = harmonics(x, y, z, DEGREE)
        F: tl.constexpr = (DEGREE + 1) * (DEGREE + 1) - 1
        for m in tl.static_range(F):
            number = tl.where(exists, found[m], 0.0)
            if out_features is not None:
                for part in tl.static_range(PARTS):
                    tl.store(out_features + place * E + part * F + m, number if part < 2 else tl.zeros_like(number))
            if not OF_KEYS:
                number *= tl.load(zonal + head * (DEGREE + 1) + degree_of(m)) * inverse_scale
            if PARTS == 1:
                tl.store(out_columns + row + m, number)
            else:
                high = high_part(number)
                low = number - high
                tl.store(out_columns + row + m, narrow(high, tl.bfloat16))
                tl.store(out_columns + row + F + m, narrow(low if OF_KEYS else high, tl.bfloat16))
                tl.store(out_columns + row + 2 * F + m, narrow(high if OF_KEYS else low, tl.bfloat16))
        rest = tl.zeros_like(x)
        if OF_KEYS:
            if log_weight is not None:
                rest = tl.load(log_weight + token, mask=exists, other=0.0) * inverse_scale
                rest = tl.where(rest < MASKED, MASKED, rest)
            rest = tl.where(exists, rest, MASKED)
        for i in tl.static_range(E - PARTS * F):
            if i < PARTS and not OF_KEYS:
                number = tl.where(exists, 1.0, rest)
            elif i < PARTS and PARTS > 1:
                number = high_part(rest)
                rest -= number
            elif i < PARTS:
                number = rest
            else:
                number = tl.zeros_like(x)
            tl.store(out_columns + row + PARTS * F + i, narrow(number, out_columns.dtype.element_ty))
            if out_features is not None:
                tl.store(out_features + place * E + PARTS * F + i, tl.zeros_like(x))
