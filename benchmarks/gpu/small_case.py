"""Every kernel once, on small and odd sizes: what compute-sanitizer and the profiler look at.

`python -m benchmarks.gpu.small_case [--backend cuda]`
"""

import argparse
import sys

import torch

import evoworld
from benchmarks.gpu.scatter import deterministic_algorithms
from evoworld import ops
from evoworld.geometry import SparseGrid
from evoworld.testing import RENDER_CASES, SCATTER_CASES, evaluate, on_device

# One of each specialisation of the channels, each dtype, each odd shape.
NAMES = ("channels_1", "channels_4", "channels_8", "half_16", "bfloat16_17", "channels_32")
SCATTER_NAMES = (*NAMES, "several_pages", "invalid_depth", "one_point", "empty_grid", "no_rays")
RENDER_NAMES = (*NAMES, "several_pages", "jitter", "opaque", "from_outside", "empty_grid", "no_rays")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.small_case", description=__doc__)
    parser.add_argument("--backend", choices=("cuda", "triton", "cpu"), default="cuda")
    backend = parser.parse_args(argv).backend
    device = "cpu" if backend == "cpu" else "cuda"
    run(device, backend)
    if device == "cuda":
        torch.cuda.synchronize()
    print("done")
    return 0


def run(device: str, backend: str) -> None:
    """Forward and backward of both ops, in order where that is there, and a grid that grows."""
    # Built before the backend is asked for: a case's grid grows on the CPU.
    scatters = [SCATTER_CASES[name].build() for name in SCATTER_NAMES]
    renders = [RENDER_CASES[name].build() for name in RENDER_NAMES]
    with evoworld.backend(backend):
        for arguments in scatters:
            for width in (0, 7):
                evaluate(ops.voxel_scatter, {**arguments, "image_width": width}, device=device)
            moved = on_device(arguments, device)
            if backend != "triton":
                with deterministic_algorithms():
                    ops.voxel_scatter(**moved)
            voxels, channels = moved["grid"].num_voxels, moved["features"].shape[1]
            sums = torch.zeros(voxels, channels, device=device), torch.zeros(voxels, device=device)
            ops.voxel_scatter_(*sums, **moved)
        for arguments in renders:
            for width in (0, 7):
                evaluate(ops.volume_render, {**arguments, "image_width": width}, device=device)
        draw = torch.Generator().manual_seed(0)
        grid = SparseGrid(0.1, device=device)
        for reach in (1.0, 3.0):
            grid.merge((reach * torch.randn(501, 3, generator=draw)).to(device))


if __name__ == "__main__":
    sys.exit(main())
