"""torch.compile of the reference, where it can be compiled in the time there is, against the kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import render, scatter
from benchmarks.gpu.context import STRAYS, TOLERANCES, Context, Size, expected, named
from benchmarks.gpu.scene import Room, hall
from benchmarks.harness import Check, Contestant, ratio
from evoworld import reference

SIZE = Size(512, 16, torch.float16)
PEER = "torch.compile"
TARGET = 10.0
CHUNK_RAYS = 1024  # as many as the reference holds at once; more would only be split again, into a larger graph


def run(context: Context) -> None:
    """Adds rows and targets: scatter forward and with backward, then render."""
    if not context.backends:
        return
    room = hall(context.tiny)
    compare_scatter(context, room)
    compare_render(context, room)


def compare_scatter(context: Context, room: Room) -> None:
    # One input: another one's grid has another size, and would be compiled for anew. It passes the L2 with its sums.
    inputs = scatter.prepare(context, room, SIZE)[:1]
    compiled = torch.compile(reference.voxel_scatter, dynamic=False)
    best = context.backends[0]

    def both_ways(given: Any, op) -> tuple[Tensor, ...]:
        leaves = [tensor.detach().requires_grad_() for tensor in given.arguments[:4]]
        return torch.autograd.grad(op(*leaves, given.grid), leaves, given.d_sums)

    for given in inputs:
        _ = given.d_sums
    sums = expected(scatter.OP, *inputs[0].arguments)
    wanted = range(len(scatter.LEAVES))
    truth = expected(scatter.OP, *inputs[0].arguments, gradients_of=wanted, upstream=inputs[0].d_sums)
    ways = {
        "forward": (
            lambda given: scatter.scatter(given, best),
            lambda given: compiled(*given.arguments),
            scatter.OUTPUTS,
            Check(named(scatter.OUTPUTS, sums), TOLERANCES[torch.float32]),
        ),
        "forward and backward": (
            lambda given: both_ways(given, lambda *a: scatter.scatter_leaves(given, best, *a)),
            lambda given: both_ways(given, compiled),
            scatter.LEAVES,
            Check(named(scatter.LEAVES, truth), TOLERANCES[SIZE.dtype], STRAYS),
        ),
    }
    for way, (ours, theirs, names, check) in ways.items():
        compare(context, scatter.OP, way, best, ours, theirs, names, inputs, check)


def compare_render(context: Context, room: Room) -> None:
    views = render.prepare(context, room, SIZE)
    best = context.backends[0]
    compiled = torch.compile(reference.volume_render, dynamic=False)

    def in_chunks(view: render.View) -> list[Tensor]:
        features, density, origins, directions, *rest = view.arguments
        pairs = zip(origins.split(CHUNK_RAYS), directions.split(CHUNK_RAYS), strict=True)
        parts = [compiled(features, density, o, d, *rest) for o, d in pairs]
        return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]

    truth = named(render.OUTPUTS, expected(render.OP, *views[0].arguments))
    check = Check(truth, max(render.FORWARD_TOLERANCE, TOLERANCES[SIZE.dtype]))
    compare(
        context, render.OP, "forward", best, lambda v: render.render(v, best), in_chunks, render.OUTPUTS, views, check
    )


def compare(context, op: str, way: str, best: str, ours, theirs, names, inputs, check: Check) -> None:
    """One case of the two, and the target for their ratio."""
    case = f"{SIZE.title(op)}, {way} ({PEER})"
    contestants = [
        Contestant(best, ours, lambda found: named(names, found)),
        Contestant(PEER, theirs, lambda found: named(names, found), note="of the reference"),
    ]
    rows = context.compare(case, contestants, inputs, check, [best])
    context.target(f"{case}: {PEER} of the reference / {best}", ratio(rows, PEER, best), TARGET, True)
