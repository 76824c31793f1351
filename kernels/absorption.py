"""What a sample does to the light of its ray, and what the samples of a cell gather for its 8 corners."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def one_minus_exp_negative(
    x,  # [R] float32
):
    """1 - exp(-x) to a few units in the last place, small x included.

    exp(y) = 2^n exp(r) with |r| <= ln(2) / 2; the Taylor series of expm1(r) to degree 7 is good to 5e-9 there.
    """
    y = tl.minimum(tl.maximum(-x, -87.0), 87.0)
    n = tl.floor(y * 1.44269504 + 0.5)
    r = tl.fma(n, -1.42860677e-6, tl.fma(n, -0.693145752, y))
    p = tl.fma(r, 1.0 / 5040.0, 1.0 / 720.0)
    p = tl.fma(p, r, 1.0 / 120.0)
    p = tl.fma(p, r, 1.0 / 24.0)
    p = tl.fma(p, r, 1.0 / 6.0)
    p = tl.fma(p, r, 0.5)
    p = tl.fma(p * r, r, r)
    power = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(x == x, -tl.fma(power, p, power - 1.0), x)  # the clamp has dropped a NaN


@triton.jit
def load_corners(
    density,  # [V]
    rows,  # 8 x [R] int64
    mask,  # [R] bool: others keep what they have
    kept,  # 8 x [R]
):
    """Densities of the corners of cells that rays enter."""
    values = ()
    for i in tl.static_range(8):
        value = tl.load(density + rows[i], mask=mask & (rows[i] >= 0), other=0.0)
        values += (tl.where(mask, value, kept[i]),)
    return values


@triton.jit
def absorb(
    transmittance,  # [R]
    sigma,  # [R] 1/m
    step,  # metres
    mask,  # [R] bool
):
    """(weight, transmittance past it) of a sample of density sigma."""
    weight = tl.where(mask, transmittance * one_minus_exp_negative(sigma * step), 0.0)
    return weight, transmittance - weight


@triton.jit
def gather(
    weights,  # 8 x [R] W_c of the current cell
    weight,  # [R]
    corner_weights,  # 8 x [R]
    entered,  # [R] bool: the cell is new
):
    """W_c += weight a_c, from zero where the cell is new."""
    result = ()
    for i in tl.static_range(8):
        result += (tl.fma(weight, corner_weights[i], tl.where(entered, 0.0, weights[i])),)
    return result
