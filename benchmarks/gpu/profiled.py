"""The ops at full size, forward and backward, once each by the best backend: what ncu is pointed at."""

import sys
from functools import partial

from benchmarks.attention import attend, both_ways
from benchmarks.gpu import attention, render, scatter
from benchmarks.gpu.context import Context
from benchmarks.gpu.device import open_device
from benchmarks.gpu.scene import hall


def main(device: str = "cuda", tiny: bool = False) -> int:
    context = Context(open_device(device), quick=True, tiny=tiny)
    room, backend = hall(tiny), context.backends[0]
    for size in scatter.QUICK_SIZES:
        given = scatter.prepare(context, room, size)[0]
        scatter.scatter(given, backend)
        scatter.in_order(given, backend)
        scatter.gradients(given, backend, len(scatter.LEAVES))
    for size in render.QUICK_SIZES:
        view = render.prepare(context, room, size)[0]
        render.render(view, backend)
        for wanted in render.BACKWARD.values():
            render.gradients(view.graph(backend, wanted))
    for backend in attention.served(context)[:1]:
        for size in attention.LONG_SIZES:
            tokens = attention.prepare(context, size)[0]
            both_ways(partial(attend, backend=backend), tokens)
            attend(tokens, radius=attention.RADIUS, backend=backend)
    return 0


if __name__ == "__main__":
    sys.exit(main())
