"""Matrix products of tiles and rounding to a narrower type, where Triton's interpreter is wrong about bfloat16."""

from __future__ import annotations

import triton
import triton.language as tl

from .sparse_grid import INTERPRETED


@triton.jit
def dot(
    a,  # [M, K]
    b,  # [K, N]
    total,  # [M, N] float32
    PRECISION: tl.constexpr,  # of float32: "ieee" or "tf32"
):
    """total + a b. The interpreter multiplies the bits of bfloat16, so it gets them as float32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    else:
        return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def narrow(
    number,  # [...] float32
    dtype: tl.constexpr,
):
    """Each number as the nearest one of a storage type. The interpreter would cut bits of bfloat16 off."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = number.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return bits.to(tl.float32, bitcast=True).to(dtype)
    else:
        return number.to(dtype)
