"""The multiply-add rates of matrix products, and torch's own copy, as ceilings."""

import torch

from benchmarks.gpu.context import Context
from benchmarks.machine import measure_ceilings, measure_products

MATRIX_SIZE = 8192


def run(context: Context) -> None:
    """Adds three rates; float32 means float32: no tf32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    size = 256 if context.tiny else MATRIX_SIZE
    found = measure_ceilings(0.01 if context.tiny else 2.0, size, context.device.name, context.device.clock)
    context.findings.rates |= {
        "copy bytes/s": found.copy_bytes_per_second,
        "float32 FLOP/s": found.flops_per_second,
        "bfloat16 FLOP/s": measure_products(torch.bfloat16, size, context.device.name, context.device.clock),
    }
