"""How the backward kernels of sphere_attention divide their work; the tests say what spills."""

from __future__ import annotations

import torch

from .sparse_grid import INTERPRETED
from .sphere_attention_configs import Config

# By (bits of the storage, width up to), then architecture from. "key" goes through the queries, "query" through the
# keys. On sm_90 a warpgroup's 64 rows meet tiles of 64, as two results of 64 x 64 and two sums of 64 x width fill the
# registers; on sm_100 results lie in tensor memory, where each product of a chain has columns of its own; sm_86 and
# sm_120 have 99 KiB of shared memory.
_TABLE = {
    "key": {
        (16, 64): {
            80: Config(64, 128, 8, 2),
            90: Config(64, 128, 8, 3),
            100: Config(32, 128, 8, 2),
            120: Config(64, 128, 8, 2),
        },
        (16, 128): {
            80: Config(32, 64, 4, 2),
            90: Config(64, 128, 8, 2),
            100: Config(32, 128, 8, 2),
            120: Config(32, 64, 4, 2),
        },
        (32, 64): {80: Config(32, 64, 8, 1)},
        (32, 128): {80: Config(16, 32, 8, 1)},
    },
    "query": {
        (16, 64): {80: Config(128, 64, 8, 2), 90: Config(128, 128, 8, 2), 100: Config(128, 64, 8, 2)},
        (16, 128): {80: Config(128, 32, 8, 2), 90: Config(128, 64, 8, 2), 100: Config(128, 32, 8, 2)},
        (32, 64): {80: Config(64, 32, 8, 1)},
        (32, 128): {80: Config(64, 16, 8, 1)},
    },
}
_WITH_RADIUS = {
    ("key", 16, 128): {80: Config(16, 64, 4, 2), 120: Config(16, 64, 4, 2)}
}  # instead: masks take registers
_INTERPRETED = Config(64, 64, 8, 1)  # the interpreter takes as long for a tile of any size


def backward_config(kernel: str, width: int, dtype: torch.dtype, capability: int, ranged: bool) -> Config:
    """The configuration of "key" or "query" for the wider of D and Dv; capability: 90."""
    if INTERPRETED:
        return _INTERPRETED
    bits, widest = 8 * dtype.itemsize, 64 if width <= 64 else 128
    table = _TABLE[kernel][bits, widest]
    known = max((arch for arch in table if arch <= capability), default=min(table))
    return _WITH_RADIUS.get((kernel, bits, widest), {}).get(known, table[known]) if ranged else table[known]
