"""Both ops at full size, forward and backward, once each by the best backend: what ncu is pointed at."""

import sys

from benchmarks.gpu import render, scatter
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
