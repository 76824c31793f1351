"""Every kernel once, on small and odd sizes: what compute-sanitizer looks at.

`python -m benchmarks.gpu.small_case [--backend cuda] [--ops voxel_scatter volume_render]`
"""

import argparse
import sys

import torch

import evoworld
from benchmarks.gpu.scatter import deterministic_algorithms
from evoworld import ops
from evoworld.geometry import SparseGrid
from evoworld.testing import RENDER_CASES, SCATTER_CASES, evaluate, on_device
from evoworld.testing_attention import ATTENTION_CASES

# One of each specialisation of the channels, each dtype, each odd shape.
NAMES = ("channels_1", "channels_4", "channels_8", "half_16", "bfloat16_17", "channels_32")
SCATTER_NAMES = (*NAMES, "several_pages", "invalid_depth", "one_point", "empty_grid", "no_rays")
RENDER_NAMES = (*NAMES, "several_pages", "jitter", "opaque", "from_outside", "empty_grid", "no_rays")
# Each dtype, odd widths and lengths, masked keys, several tiles, queries without a key.
ATTENTION_NAMES = ("degree_3", "width_127_65", "half_masked", "bfloat16_64", "bfloat16_128", "many_keys", "no_keys")
RADIUS_NAMES = ("radius_bfloat16", "radius_half_projection", "radius_leaves_some_alone")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.small_case", description=__doc__)
    parser.add_argument("--backend", choices=("cuda", "triton", "cpu"), default="cuda")
    parser.add_argument("--ops", nargs="+", choices=RUNS, help="default: all that the backend serves")
    arguments = parser.parse_args(argv)
    backend = arguments.backend
    device = "cpu" if backend == "cpu" else "cuda"
    for op in arguments.ops or [op for op in RUNS if ops.available(op)[backend] is None]:
        RUNS[op](device, backend)
    if device == "cuda":
        torch.cuda.synchronize()
    print("done")
    return 0


def scatter(device: str, backend: str) -> None:
    """Forward and backward, in order where that is there, in place, and a grid that grows."""
    # Built before the backend is asked for: a case's grid grows on the CPU.
    cases = [SCATTER_CASES[name].build() for name in SCATTER_NAMES]
    with evoworld.backend(backend):
        for arguments in cases:
            for width in (0, 7):
                evaluate(ops.voxel_scatter, {**arguments, "image_width": width}, device=device)
            moved = on_device(arguments, device)
            if backend != "triton":
                with deterministic_algorithms():
                    ops.voxel_scatter(**moved)
            voxels, channels = moved["grid"].num_voxels, moved["features"].shape[1]
            sums = torch.zeros(voxels, channels, device=device), torch.zeros(voxels, device=device)
            ops.voxel_scatter_(*sums, **moved)
        draw = torch.Generator().manual_seed(0)
        grid = SparseGrid(0.1, device=device)
        for reach in (1.0, 3.0):
            grid.merge((reach * torch.randn(501, 3, generator=draw)).to(device))


def render(device: str, backend: str) -> None:
    """Forward and backward."""
    cases = [RENDER_CASES[name].build() for name in RENDER_NAMES]
    with evoworld.backend(backend):
        for arguments in cases:
            for width in (0, 7):
                evaluate(ops.volume_render, {**arguments, "image_width": width}, device=device)


def attend(device: str, backend: str) -> None:
    """Forward and backward, of all keys and of those within a radius."""
    with evoworld.backend(backend):
        for name in (*ATTENTION_NAMES, *RADIUS_NAMES):
            evaluate(ops.sphere_attention, ATTENTION_CASES[name].build(), device=device)


RUNS = {"voxel_scatter": scatter, "volume_render": render, "sphere_attention": attend}


if __name__ == "__main__":
    sys.exit(main())
