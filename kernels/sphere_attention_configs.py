"""How sphere_attention's kernels divide their work: tiles, warps and stages by width, dtype and architecture."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton

from .sparse_grid import INTERPRETED


class Config(NamedTuple):
    block_l: int  # queries of a tile
    block_s: int  # keys of a tile
    num_warps: int
    num_stages: int  # of the pipeline that loads the next tiles


# By (bits of the storage, width up to), then architecture from. A wider tile of keys means fewer instructions a
# logit; two blocks on a multiprocessor (sm_90, width 64) overlap products and exponentials; the mask of a radius takes
# registers; sm_86 and sm_120 have 99 KiB of shared memory.
_TABLE = {
    "dense": {
        (16, 64): {
            80: Config(128, 64, 8, 2),
            90: Config(128, 64, 4, 3),
            100: Config(128, 128, 8, 3),
            120: Config(128, 64, 8, 2),
        },
        (16, 128): {80: Config(128, 32, 8, 2), 90: Config(128, 128, 8, 2), 120: Config(128, 32, 8, 2)},
        (32, 64): {80: Config(64, 16, 8, 2)},
        (32, 128): {80: Config(64, 16, 8, 2)},
    },
    "radius": {
        (16, 64): {80: Config(128, 64, 8, 2), 90: Config(128, 64, 8, 3), 120: Config(128, 64, 8, 2)},
        (16, 128): {80: Config(128, 32, 8, 2), 90: Config(128, 64, 8, 2), 120: Config(128, 32, 8, 2)},
        (32, 64): {80: Config(64, 32, 8, 2)},
        (32, 128): {80: Config(64, 16, 8, 2)},
    },
}
_INTERPRETED = Config(64, 64, 4, 1)  # the interpreter takes as long for a tile of any size


def config(width: int, dtype: torch.dtype, capability: int, ranged: bool) -> Config:
    """The forward's configuration for the wider of D and Dv, with or without a radius; capability: 90."""
    if INTERPRETED:
        return _INTERPRETED
    table = _TABLE["radius" if ranged else "dense"][8 * dtype.itemsize, 64 if width <= 64 else 128]
    return table[max((known for known in table if known <= capability), default=min(table))]


@cache
def capability_of(device: torch.device) -> int:
    """10 major + minor; what has no number counts as the lowest that is supported."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def exact(dtype: torch.dtype) -> bool:
    """Whether products are computed as float32 would: no, where torch's own may be rounded to TensorFloat-32."""
    return dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32"


@triton.constexpr_function
def pieces(width):
    """Powers of two, 16 to 128, that a row of this width is cut into: 80 makes 64 and 16."""
    left = (width + 15) // 16 * 16
    found = ()
    for piece in (128, 64, 32, 16):
        while left >= piece:
            found += (piece,)
            left -= piece
    return found
