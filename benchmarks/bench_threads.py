"""Two threads on a busy machine are never slower than one: the ops, timed beside processes that spin."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from benchmarks.bench_volume_render import HEIGHT, render
from benchmarks.harness import Check, Contestant, Row, Target, compare, ratio
from benchmarks.inputs import World, panorama_rays
from evoworld import ops
from evoworld.geometry import Panorama

# Half the repeats fall on either side of the median: this much of it is noise on a machine that is busy by design.
LIMIT = 1.05


def run(world: World, repeats: int) -> tuple[list[Row], list[Target]]:
    """Rows and targets with as many spinning processes as cores, and with one fewer."""
    scatter_inputs = [panorama_rays(frame, HEIGHT) for frame in world.frames[:4]]
    camera = Panorama(HEIGHT, 2 * HEIGHT)
    render_inputs = [camera.rays(frame.camera_to_world) for frame in world.frames[:4]]
    cases = (
        ("voxel_scatter", scatter_inputs, _scatter),
        ("volume_render", render_inputs, lambda rays: _named(render(world, *rays))),
    )
    cores = os.cpu_count() or 1
    rows, targets = [], []
    for spinning in sorted({max(cores - 1, 1), cores}):
        for name, inputs, function in cases:
            case = f"{name} beside {spinning} spinning"
            contestants = [
                Contestant(f"{threads} thread{'s' * (threads > 1)}", _with_threads(function, threads))
                for threads in (1, 2)
            ]
            check = Check(function(inputs[0]), 0.0)
            with spinning_processes(spinning):
                found = compare(case, contestants, inputs, check, repeats)
            rows += found.values()
            targets.append(Target(f"{case}: 2 threads / 1 thread", ratio(found, "2 threads", "1 thread"), LIMIT, False))
    return rows, targets


@contextmanager
def spinning_processes(count: int) -> Iterator[None]:
    """Keeps `count` processors busy for the length of a with block."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _named(tensors):
    return {f"output {index}": tensor for index, tensor in enumerate(tensors)}


def _scatter(rays):
    return _named(ops.voxel_scatter(rays.features, rays.depth, rays.origins, rays.directions, rays.grid))


def _with_threads(function, threads: int):
    def run_with(argument):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return function(argument)
        finally:
            torch.set_num_threads(before)

    return run_with
