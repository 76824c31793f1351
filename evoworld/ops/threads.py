"""Keeping torch's thread pool out of the way of the kernels' own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from evoworld import _native


@contextmanager
def kernels_only() -> Iterator[None]:
    """Inside the block the native CPU kernels use all of torch's threads, and torch's own operations one.

    For code that runs small tensor operations between kernels. Threads of torch's pool spin while they wait for the
    next operation; where another process wants the processor, that made `Memory.observe` 6 times slower.
    """
    threads = torch.get_num_threads()
    use_threads = _native.function("cpu", "evoworld_cpu_use_threads")
    if use_threads is None or threads == 1:  # without the kernels, torch's operations are all there is
        yield
        return
    use_threads(threads)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        use_threads(0)
