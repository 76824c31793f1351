"""Two threads on a busy machine are never slower than one: the ops and the memory, timed beside processes that spin."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.bench_volume_render import HEIGHT, render
from benchmarks.harness import Check, Contestant, Row, Target, compare, ratio
from benchmarks.inputs import CHANNELS, VOXEL_SIZE, World, lift, panorama_rays
from evoworld import ops
from evoworld.data import Frame
from evoworld.geometry import Panorama
from evoworld.world import Memory

# A median of a few runs on a machine that is busy by design is no better than this.
LIMIT = 1.05
TOLERANCE = 1e-4
FRAMES = 4


def run(world: World, repeats: int) -> tuple[list[Row], list[Target]]:
    """Rows and targets with as many spinning processes as cores, and with one fewer."""
    frames = world.frames[:FRAMES]
    camera = Panorama(HEIGHT, 2 * HEIGHT)
    cores = os.cpu_count() or 1
    rows, targets = [], []
    for spinning in sorted({max(cores - 1, 1), cores}):
        cases = (
            ("voxel_scatter", [panorama_rays(frame, HEIGHT) for frame in frames], lambda: _scatter),
            (
                "volume_render",
                [camera.rays(f.camera_to_world) for f in frames],
                lambda: lambda r: _named(render(world, *r)),
            ),
            ("observe + query", frames, lambda: _observe_and_query(frames[0])),
        )
        for name, inputs, make in cases:
            case = f"{name} beside {spinning} spinning"
            check = Check(make()(inputs[0]), TOLERANCE)
            contestants = [
                Contestant("1 thread", _with_threads(make(), 1)),
                Contestant("2 threads", _with_threads(make(), 2)),
            ]
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


def _observe_and_query(first: Frame) -> Callable[[Frame], dict[str, torch.Tensor]]:
    """Observes into a memory of its own, which has seen the first frame."""
    memory = Memory(VOXEL_SIZE, feature_dim=CHANNELS)

    def step(frame: Frame) -> dict[str, torch.Tensor]:
        memory.observe(lift(frame.image), frame.depth, frame.camera_to_world, frame.camera)
        return {"features": memory.query(frame.camera, frame.camera_to_world).features}

    step(first)
    return step


def _scatter(rays) -> dict[str, torch.Tensor]:
    return _named(ops.voxel_scatter(rays.features, rays.depth, rays.origins, rays.directions, rays.grid))


def _named(tensors) -> dict[str, torch.Tensor]:
    return {f"output {index}": tensor for index, tensor in enumerate(tensors)}


def _with_threads(function: Callable[[Any], Any], threads: int) -> Callable[[Any], Any]:
    def run_with(argument):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return function(argument)
        finally:
            torch.set_num_threads(before)

    return run_with
