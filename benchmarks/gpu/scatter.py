"""voxel_scatter on panoramas of a room: forward, in place, deterministic, backward, for several sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import evoworld
from benchmarks.gpu.context import STRAYS, TOLERANCES, Context, Size, expected, named
from benchmarks.gpu.scene import Room, cells_of_tiles, hall
from benchmarks.harness import Check, Contestant, Row
from evoworld import ops, reference
from evoworld.geometry import Panorama, SparseGrid

OP = "voxel_scatter"
OUTPUTS = ("feature_sum", "weight_sum")
LEAVES = ("features", "depth", "origins", "directions")
BACKWARD = {"backward, features": 1, "backward, all gradients": len(LEAVES)}
MULTIPLY_ADD = 2
FLOOR_TARGET, BACKWARD_TARGET_MS = 2.0, 0.050
TARGET_SIZES = ((16, torch.float16), (32, torch.float32))

SIZES = (
    Size(512, 16, torch.float16),
    Size(512, 32, torch.float32),
    Size(256, 16, torch.float16),
    Size(512, 4, torch.float32),
    Size(512, 64, torch.float16),
)
QUICK_SIZES = SIZES[:2]


@dataclass
class Prepared:
    """One panorama on the device, with a grid of its own points, kept sums, and a graph whose backward is timed."""

    features: Tensor  # [R, C]
    depth: Tensor  # [R]
    origins: Tensor  # [R, 3]
    directions: Tensor  # [R, 3]
    grid: SparseGrid
    width: int
    graphs: dict[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.features, self.depth, self.origins, self.directions, self.grid

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.arguments[:4])

    @cached_property
    def sums(self) -> tuple[Tensor, Tensor]:
        voxels, channels = self.grid.num_voxels, self.features.shape[1]
        return self.depth.new_zeros(voxels, channels), self.depth.new_zeros(voxels)

    @cached_property
    def d_sums(self) -> list[Tensor]:
        draw = torch.Generator(self.depth.device).manual_seed(0)
        return [torch.randn(s.shape, generator=draw, device=s.device) for s in self.sums]

    def graph(self, backend: str) -> tuple[Sequence[Tensor], list[Tensor]]:
        """(sums, leaves) of a forward by the backend, recorded once."""
        if backend not in self.graphs:
            leaves = [tensor.detach().clone().requires_grad_() for tensor in self.arguments[:4]]
            with evoworld.backend(backend):
                self.graphs[backend] = ops.voxel_scatter(*leaves, self.grid, image_width=self.width), leaves
        return self.graphs[backend]


def run(context: Context) -> None:
    """Adds rows and targets for each size."""
    room = hall(context.tiny)
    for index, size in enumerate(QUICK_SIZES if context.quick else SIZES):
        inputs = prepare(context, room, size)
        rows = forward(context, size, inputs, deterministic=index == 0)
        rows |= backward(context, size, inputs)
        targets(context, size, inputs[0], rows)
        if index == 0:
            first = [tensor.cpu() for tensor in inputs[0].arguments[1:4]]
            cells = cells_of_tiles(*first, inputs[0].width, room.voxel_size)
            context.note(
                f"{size.title(OP)}: {inputs[0].grid.num_voxels:,} lattice points of the panorama's own surface at "
                f"{room.voxel_size:g} m; an 8 x 4 tile of pixels falls into {cells:.1f} distinct cells. "
                f"{len(inputs)} inputs take turns. An addition for each corner and channel of each pixel would take "
                f"{naive_seconds(context, inputs[0]) * 1e6:.0f} us at the measured rate."
            )


def prepare(context: Context, room: Room, size: Size) -> list[Prepared]:
    """Enough panoramas that none is still in the cache when its turn comes."""
    height = context.height(size.height)
    camera = Panorama(height, 2 * height)
    count = context.inputs_count(camera.num_rays * (size.channels * size.dtype.itemsize + 28))
    inputs = []
    for index in range(count):
        origins, directions = room.rays(camera, index)
        depth = room.depth(origins, directions, noise_seed=index)
        grid = SparseGrid.from_points(torch.addcmul(origins, directions, depth[:, None]), room.voxel_size)
        draw = torch.Generator().manual_seed(index)
        features = torch.randn(camera.num_rays, size.channels, generator=draw).to(size.dtype)
        tensors = (t.to(context.device.name) for t in (features, depth, origins, directions, grid))
        inputs.append(Prepared(*tensors, camera.width))
    return inputs


def forward(context: Context, size: Size, inputs: Sequence[Prepared], deterministic: bool) -> dict[str, Row]:
    """Every backend and the index_add_ composite, which is what the reference is."""
    nbytes, flops = floor(inputs[0])
    tolerance = TOLERANCES[torch.float32]
    contestants, ours = [], []

    def add(name: str, run, note: str = "", mine: bool = True) -> None:
        contestants.append(Contestant(name, run, lambda found: named(OUTPUTS, found), nbytes, flops, note))
        ours.extend([name] if mine else [])

    for backend in context.backends:
        add(backend, lambda given, b=backend: scatter(given, b))
    for backend in context.backends[:1]:
        add(f"{backend}, no image width", lambda given, b=backend: scatter(given, b, width=0), "rays in any order")
        add(f"{backend}, in place", lambda given, b=backend: in_place(given, b), "into kept sums; zeroing timed too")
    if deterministic and context.backends and context.backends[0] != "triton":
        add(f"{context.backends[0]}, deterministic", lambda given, b=context.backends[0]: in_order(given, b))
    add("index_add_", lambda given: reference.voxel_scatter(*given.arguments), "the PyTorch reference", mine=False)
    check = Check(named(OUTPUTS, expected("voxel_scatter", *inputs[0].arguments)), tolerance)
    return context.compare(f"{size.title(OP)}, forward", contestants, inputs, check, ours)


def backward(context: Context, size: Size, inputs: Sequence[Prepared]) -> dict[str, Row]:
    """Gradients through autograd, by every backend and the reference."""
    nbytes, flops = floor(inputs[0])
    contestants, checks = [], {}
    truth = expected("voxel_scatter", *inputs[0].arguments, gradients_of=range(len(LEAVES)), upstream=inputs[0].d_sums)
    for what, wanted in BACKWARD.items():
        for backend in (*context.backends, "reference"):
            name = f"{backend}, {what}"
            contestants.append(
                Contestant(
                    name,
                    lambda given, b=backend, n=wanted: gradients(given, b, n),
                    lambda found: named(LEAVES[: len(found)], found),
                    nbytes + inputs[0].nbytes * (wanted == len(LEAVES)),
                    flops * (2 if wanted > 1 else 1),
                )
            )
            strays = STRAYS if wanted > 1 else 0.0
            checks[name] = Check(named(LEAVES[:wanted], truth[:wanted]), TOLERANCES[size.dtype], strays)
    context.prepare(Prepared.graph, inputs, (*context.backends, "reference"))
    ours = [name for name in checks if not name.startswith("reference")]
    return context.compare(f"{size.title(OP)}, backward", contestants, inputs, checks, ours)


def targets(context: Context, size: Size, given: Prepared, rows: dict[str, Row]) -> None:
    """What the project set itself, for the sizes that it did so for."""
    if size.height != 512 or (size.channels, size.dtype) not in TARGET_SIZES or not context.backends:
        return
    best = context.backends[0]
    least = context.floor_seconds(floor(given)[0])
    note = f"{rows[best].median * 1e6:.0f} us; the floor is {least * 1e6:.0f} us of copying"
    context.target(
        f"{size.title(OP)}, forward by {best} / floor", rows[best].median / least, FLOOR_TARGET, False, note=note
    )
    for what in BACKWARD:
        measured = rows[f"{best}, {what}"].median * 1e3
        context.target(f"{size.title(OP)}, {what} by {best}", measured, BACKWARD_TARGET_MS, False, "ms")


def naive_seconds(context: Context, given: Prepared) -> float:
    """What 8 (C + 1) additions a pixel take if the L2 does nothing else, four floats at a time."""
    additions = given.depth.numel() * 8 * (given.features.shape[1] + 1)
    return additions / context.rate("L2 additions/s, four floats at a time")


def scatter(given: Prepared, backend: str, width: int | None = None) -> tuple[Tensor, Tensor]:
    with evoworld.backend(backend):
        return ops.voxel_scatter(*given.arguments, image_width=given.width if width is None else width)


def scatter_leaves(given: Prepared, backend: str, *arguments: Any) -> tuple[Tensor, Tensor]:
    """`scatter` with other tensors in the place of the input's."""
    with evoworld.backend(backend):
        return ops.voxel_scatter(*arguments, image_width=given.width)


def in_place(given: Prepared, backend: str) -> tuple[Tensor, Tensor]:
    for total in given.sums:
        total.zero_()
    with evoworld.backend(backend):
        ops.voxel_scatter_(*given.sums, *given.arguments, image_width=given.width)
    return given.sums


def in_order(given: Prepared, backend: str) -> tuple[Tensor, Tensor]:
    with deterministic_algorithms():
        return scatter(given, backend)


def gradients(given: Prepared, backend: str, wanted: int) -> tuple[Tensor, ...]:
    sums, leaves = given.graph(backend)
    return torch.autograd.grad(sums, leaves[:wanted], given.d_sums, retain_graph=True)


def floor(given: Prepared) -> tuple[float, float]:
    """Bytes: the rays read once, the sums written once. FLOPs: 8 corners times C + 1 multiply-adds a point."""
    voxels, channels = given.grid.num_voxels, given.features.shape[1]
    return given.nbytes + voxels * (channels + 1) * 4, given.depth.numel() * 8 * (channels + 1) * MULTIPLY_ADD


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """torch's deterministic mode for the length of a with block, without filling memory that is not initialised."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
