"""volume_render of a room of 256 x 256 x 256 lattice points, a tenth of them allocated: forward, backward, memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

import evoworld
from benchmarks import peers
from benchmarks.gpu.context import STRAYS, TOLERANCES, Context, Size, expected, named
from benchmarks.gpu.scene import Room, hall
from benchmarks.harness import Check, Contestant, Row
from benchmarks.work import March, Work, bytes_of_render, count_samples
from evoworld import ops
from evoworld.geometry import Panorama

NEAR = 0.05
OP = "volume_render"
OUTPUTS = ("features", "depth", "opacity")
GRADIENTS = ("d_features", "d_density", "d_origins", "d_directions")
BACKWARD = {"backward, features and density": 2, "backward, rays too": 4}
COUNTED_RAYS = 512
FORWARD_TARGET_MS, BACKWARD_TARGET_MS, MEMORY_TARGET = 0.3, 2.0, 1.05
# A ray that ends one sample earlier in other rounding, as its transmittance is 1e-4: that much of a weight.
FORWARD_TOLERANCE = 1e-3
# nerfacc places its samples elsewhere and looks at a dense grid: it must merely see the same room.
NERFACC_TOLERANCE = 0.2

SIZES = (
    Size(512, 16, torch.float16),
    Size(512, 16, torch.float32),
    Size(512, 32, torch.float32),
    Size(512, 4, torch.float32),
    Size(512, 64, torch.float16),
)
QUICK_SIZES = SIZES[:1]


@dataclass
class View:
    """A panorama's rays into the room, and graphs whose backward is timed alone."""

    march: March
    origins: Tensor  # [R, 3]
    directions: Tensor  # [R, 3]
    width: int
    graphs: dict[Any, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> tuple[Any, ...]:
        march = self.march
        return march.features, march.density, self.origins, self.directions, march.grid, *march.arguments

    def graph(self, backend: str, wanted: int):
        """(outputs, leaves, gradients of the outputs) of a forward by the backend, recorded once."""
        if (backend, wanted) not in self.graphs:
            leaves = [t.detach().clone().requires_grad_(i < wanted) for i, t in enumerate(self.arguments[:4])]
            with evoworld.backend(backend):
                outputs = ops.volume_render(*leaves, *self.arguments[4:], image_width=self.width)
            self.graphs[backend, wanted] = outputs, leaves[:wanted], self.d_outputs
        return self.graphs[backend, wanted]

    @cached_property
    def d_outputs(self) -> list[Tensor]:
        """Gradients of the outputs: features in their own dtype, depth and opacity."""
        draw = torch.Generator(self.origins.device).manual_seed(0)
        rays, features = len(self.origins), self.march.features
        d_outputs = [
            torch.randn(*n, generator=draw, device=draw.device) for n in ((rays, features.shape[1]), (rays,), (rays,))
        ]
        return [d_outputs[0].to(features.dtype), *d_outputs[1:]]


def run(context: Context) -> None:
    """Adds rows and targets for each size."""
    room = hall(context.tiny)
    context.note(
        f"volume_render: a room of {room.extent} lattice points along its longest edge, of whose cube "
        f"{100 * room.occupied:.1f} % of the bricks are allocated ({room.grid.num_voxels:,} lattice points); "
        f"half-voxel steps, rays of 512 x 1024 panoramas from places that take turns."
    )
    for index, size in enumerate(QUICK_SIZES if context.quick else SIZES):
        views = prepare(context, room, size)
        work = count(views[0])
        rows = forward(context, size, views, work)
        rows |= backward(context, size, views, work)
        if index == 0:
            targets(context, size, rows)
            memory(context, size, views[0])
            context.note(
                f"{size.title(OP)}: {work.density_samples / 1e6:.1f} M samples in allocated cells before the surface, "
                f"{work.feature_samples / 1e6:.1f} M of them with a weight; at the measured rate of gathering rows "
                f"the latter take {gather_floor(context, size, work) * 1e3:.3g} ms."
            )


def prepare(context: Context, room: Room, size: Size) -> list[View]:
    """The grid is the same for all views (as in use); it alone passes the L2 with its features."""
    device = context.device.name
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(room.grid.num_voxels, size.channels, generator=draw).to(device, size.dtype)
    march = March(
        features,
        room.density.to(device),
        room.grid.to(device),
        NEAR,
        math.dist((0, 0, 0), room.size),
        room.voxel_size / 2,
    )
    height = context.height(size.height)
    camera = Panorama(height, 2 * height)
    count = 2 if context.tiny else 3
    return [View(march, *(t.to(device) for t in room.rays(camera, i)), camera.width) for i in range(count)]


def count(view: View) -> Work:
    """Samples of all rays, from some of them."""
    chosen = torch.linspace(0, len(view.origins) - 1, min(COUNTED_RAYS, len(view.origins))).long()
    chosen = chosen.to(view.origins.device)
    return count_samples(view.march, view.origins[chosen], view.directions[chosen], len(view.origins))


def forward(context: Context, size: Size, views: Sequence[View], work: Work) -> dict[str, Row]:
    """Every backend and, if it is there, nerfacc."""
    view = views[0]
    nbytes = bytes_of_render(view.march, len(view.origins), size.channels * size.dtype.itemsize + 8)
    truth = named(OUTPUTS, expected("volume_render", *view.arguments))
    check = Check(truth, max(FORWARD_TOLERANCE, TOLERANCES[size.dtype]))
    contestants, checks = [], {}

    def add(name: str, run, note: str = "", by: Check = check) -> None:
        floor = nbytes, work.flops(size.channels)
        contestants.append(Contestant(name, run, lambda found: named(OUTPUTS, found), *floor, note))
        checks[name] = by

    for backend in context.backends:
        add(backend, lambda given, b=backend: render(given, b))
    for backend in context.backends[:1]:
        add(f"{backend}, no image width", lambda given, b=backend: render(given, b, width=0), "rays in any order")
    ours = [contestant.name for contestant in contestants]
    if context.device.name == "cuda" and (nerfacc := peers.load("nerfacc_render", context.findings.missing)):
        scene = nerfacc.DenseScene(view.march)
        note = f"dense grid; checked to {NERFACC_TOLERANCE}"
        add(
            "nerfacc",
            lambda given: scene.render(given.origins, given.directions),
            note,
            Check(truth, NERFACC_TOLERANCE),
        )
    return context.compare(f"{size.title(OP)}, forward", contestants, views, checks, ours)


def backward(context: Context, size: Size, views: Sequence[View], work: Work) -> dict[str, Row]:
    """Gradients through autograd, by every backend."""
    view = views[0]
    rays = len(view.origins)
    nbytes = bytes_of_render(view.march, rays, size.channels * size.dtype.itemsize + 8)
    nbytes += view.march.features.nbytes + view.march.density.nbytes
    contestants, checks = [], {}
    truth = expected(OP, *view.arguments, gradients_of=range(len(GRADIENTS)), upstream=view.d_outputs)
    tolerance = max(FORWARD_TOLERANCE, 2 * TOLERANCES[size.dtype])
    for what, wanted in BACKWARD.items():
        for backend in context.backends:
            name = f"{backend}, {what}"
            contestants.append(
                Contestant(
                    name,
                    lambda given, b=backend, n=wanted: gradients(given.graph(b, n)),
                    lambda found: named(GRADIENTS[: len(found)], found),
                    nbytes + (24 * rays if wanted == 4 else 0),
                    2 * work.flops(size.channels),
                )
            )
            strays = STRAYS if wanted > 2 else 0.0
            checks[name] = Check(named(GRADIENTS[:wanted], truth[:wanted]), tolerance, strays)
    context.prepare(View.graph, views, context.backends, BACKWARD.values())
    case = f"{size.title(OP)}, backward"
    return context.compare(case, contestants, views, checks, list(checks))


def targets(context: Context, size: Size, rows: dict[str, Row]) -> None:
    for backend in context.backends[:1]:
        name = size.title(OP)
        context.target(f"{name}, forward by {backend}", rows[backend].median * 1e3, FORWARD_TARGET_MS, False, "ms")
        for what in BACKWARD:
            measured = rows[f"{backend}, {what}"].median * 1e3
            context.target(f"{name}, {what} by {backend}", measured, BACKWARD_TARGET_MS, False, "ms")


def memory(context: Context, size: Size, view: View) -> None:
    """Peak memory over inputs, outputs and gradients: what is above 1 would be tensors of samples.

    Kernels compute in float32: what is rounded to the features' dtype, or widened from it, is there in both.
    """
    march, rays = view.march, len(view.origins)
    inputs = march.features.nbytes + march.density.nbytes + 24 * rays
    both = 4 + (size.dtype.itemsize if size.dtype != torch.float32 else 0)
    outputs = rays * (size.channels * both + 8)
    gradient_bytes = len(march.density) * (size.channels * both + 4)
    name = size.title(OP)
    for backend in context.backends:
        held, upstream_bytes = inputs, outputs - rays * (size.channels * size.dtype.itemsize + 8)
        peak = context.device.peak_bytes(partial(render, backend=backend), view)
        note = f"{backend}, {(held + peak) / 1e6:.0f} MB"
        claim = f"{name}, forward: peak memory / (inputs + outputs)"
        context.target(claim, (held + peak) / (held + outputs), MEMORY_TARGET, False, note=note)

        outputs_kept, leaves, d_outputs = view.graph(backend, 2)
        held = inputs + sum(t.nbytes for t in (*outputs_kept, *d_outputs, *leaves))
        peak = context.device.peak_bytes(lambda v, b=backend: gradients(v.graph(b, 2)), view)
        note = f"{backend}, {(held + peak) / 1e6:.0f} MB"
        claim = f"{name}, backward: peak memory / (inputs + outputs + gradients)"
        whole = held + gradient_bytes + upstream_bytes
        context.target(claim, (held + peak) / whole, MEMORY_TARGET, False, note=note)


def gather_floor(context: Context, size: Size, work: Work) -> float:
    """Seconds to gather the 8 rows of every sample that weighs something, at the measured rate."""
    row_bytes = size.channels * size.dtype.itemsize
    rate = context.rate(f"L1 gather of {64 if row_bytes >= 64 else 32}-byte rows, bytes/s")
    return work.feature_samples * 8 * row_bytes / rate


def render(view: View, backend: str, width: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    with evoworld.backend(backend):
        return ops.volume_render(*view.arguments, image_width=view.width if width is None else width)


def gradients(graph) -> tuple[Tensor, ...]:
    outputs, leaves, d_outputs = graph
    return torch.autograd.grad(outputs, leaves, d_outputs, retain_graph=True)
