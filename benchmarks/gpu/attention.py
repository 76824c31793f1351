"""sphere_attention in bfloat16, one long sequence and 16 short ones: forward, backward, and what the bias costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from benchmarks.attention import (
    BACKWARD_PRODUCTS,
    GRADIENTS,
    OP,
    PEER_TOLERANCE,
    PRODUCTS,
    TOLERANCES,
    AttentionSize,
    Tokens,
    Way,
    attend,
    bytes_moved,
    dtype_name,
    flops,
    named,
    true_gradients,
    truth,
)
from benchmarks.gpu.context import Context
from benchmarks.gpu.findings import Table
from benchmarks.harness import Check, Contestant, Row, ratio
from benchmarks.peers import torch_attention as peer
from benchmarks.report import number, percent

HEADS = 16
LONG, SHORT = (1, 128), (16, 32)  # panoramas, and rows of tokens of each: 32768 tokens, and 16 x 2048
SIZES = tuple(AttentionSize(*p, HEADS, width, torch.bfloat16) for width in (64, 128) for p in (LONG, SHORT))
LONG_SIZES, QUICK_SIZES = SIZES[::2], SIZES[:1]
RADIUS = math.radians(30)
# By the width of a head. TFLOP/s of the two and five matrix products, without columns that the bias may add.
FORWARD_TARGET, BACKWARD_TARGET = {64: 400.0, 128: 450.0}, {64: 280.0, 128: 340.0}
BIAS_TARGET = {64: 1.12, 128: 1.06}
SDPA_TARGET, MEMORY_TARGET = 0.9, 1.25
NO_BIAS = "another function: no bias"
FOLDED_NOTE = "folding timed too"
TABLE_TITLE, TABLE_HEADER = f"{OP}, TFLOP/s", ["case", "contestant", "median ms", "TFLOP/s", "of matrix product"]


def run(context: Context) -> None:
    """Adds rows and targets for each size."""
    context.note(
        f"{OP}: the tokens of a panorama, {2 * LONG[1] ** 2} or {2 * SHORT[1] ** 2}, with area weights and a von "
        "Mises-Fisher bias for each head (kappa from 1 to 10). FLOPs are those of the matrix products with rows as "
        "wide as given, two forward and five backward. SDPA without bias computes another function."
    )
    for index, size in enumerate(QUICK_SIZES if context.quick else SIZES):
        inputs = prepare(context, size)
        forward(context, size, inputs)
        backward(context, size, inputs)
        if index == 0:
            memory(context, size, inputs[0])


def prepare(context: Context, size: AttentionSize) -> list[Tokens]:
    """Enough inputs that none is still in the cache when its turn comes, on one sphere."""
    if context.tiny:
        size = replace(size, batch=min(size.batch, 2), height=context.height(size.height), heads=2)
    sphere = size.sphere(context.device.name)
    first = size.tokens(sphere, 0)
    return [first, *(size.tokens(sphere, seed) for seed in range(1, context.inputs_count(first.nbytes)))]


def served(context: Context) -> list[str]:
    """The compiled backends that serve the op's tensors here."""
    return context.backends_of(OP)


def by_kernel(context: Context, name: str, kernels: Mapping[str, SDPBackend]) -> dict[str, SDPBackend | None]:
    """Contestants' names, one for each of SDPA's kernels; on the CPU it has no choice."""
    if context.device.name == "cpu":
        return {name: None}
    return {f"{name}, {kernel}": chosen for kernel, chosen in kernels.items()}


def contestant(
    context: Context, name: str, run, tokens: Tokens, products: int, note: str = "", radius: float | None = None
) -> Contestant:
    """A way to attend, or to make gradients."""
    moved = bytes_moved(tokens, backward=products == BACKWARD_PRODUCTS)
    peak = context.rate(f"{dtype_name(tokens.query.dtype)} FLOP/s")
    return Contestant(name, run, named, moved, flops(tokens, products, radius), note, peak)


def compare(
    context: Context, case: str, contestants: Sequence[Contestant], inputs: Any, checks, ours: Sequence[str]
) -> dict[str, Row]:
    """`Context.compare`, and lines of the table of rates."""
    rows = context.compare(case, contestants, inputs, checks, ours)
    lines = [
        [case, r.contestant, number(r.median * 1e3), number(rate(r)), percent(r.flops / r.median / r.peak)]
        for r in rows.values()
        if r.seconds
    ]
    context.findings.tables.append(Table(TABLE_TITLE, TABLE_HEADER, lines))
    context.save()
    return rows


def rate(row: Row) -> float:
    """TFLOP/s."""
    return row.flops / row.median * 1e-12


def forward(context: Context, size: AttentionSize, inputs: Sequence[Tokens]) -> None:
    """Our kernels with and without the bias and within a radius, and every way through SDPA."""
    first, dtype, long = inputs[0], size.dtype, size.batch == 1
    with_bias, without = (Check(named(truth(first, bias)), TOLERANCES[dtype]) for bias in (True, False))
    contestants, checks = [], {}

    def add(name: str, way: Way, check: Check, note: str = "", radius: float | None = None) -> None:
        contestants.append(contestant(context, name, way, first, PRODUCTS, note, radius))
        checks[name] = check

    for backend in served(context):
        add(backend, partial(attend, backend=backend), with_bias)
        add(f"{backend}, no bias", partial(attend, bias=False, backend=backend), without, "the same kernel")
        if long:
            near = Check(named(truth(first, radius=RADIUS)), TOLERANCES[dtype])
            add(f"{backend}, 30 degrees", partial(attend, radius=RADIUS, backend=backend), near, "", RADIUS)
    ours = list(checks)
    plain = by_kernel(context, "SDPA", peer.PLAIN_KERNELS)
    for name, kernel in plain.items():
        add(name, partial(peer.sdpa, kernel=kernel), without, NO_BIAS)
    for name, kernel in by_kernel(context, "SDPA, folded", peer.PLAIN_KERNELS).items():
        add(name, partial(peer.sdpa_folded, kernel=kernel), with_bias, FOLDED_NOTE)
    if not long:  # the mask of a long sequence would hold tens of gigabytes
        add_masked(context, add, first)

    case = f"{size.title}, forward"
    rows = compare(context, case, contestants, inputs, checks, ours)
    targets(context, case, rows, plain, FORWARD_TARGET[size.width], size.width)


def add_masked(context: Context, add, tokens: Tokens) -> None:
    """SDPA with the bias as a dense mask."""
    mask = peer.dense_bias(tokens.sphere, tokens.query.dtype)
    check = Check(named(truth(tokens)), PEER_TOLERANCE)
    note = f"mask of {mask.nbytes / 1e9:.2g} GB in {dtype_name(mask.dtype)}, made before the clock runs"
    for name, kernel in by_kernel(context, "SDPA, dense bias", peer.MASK_KERNELS).items():
        add(name, partial(peer.sdpa, mask=mask, kernel=kernel), check, note)


class Graphs:
    """Forwards that autograd recorded, each once, whose backward is timed alone."""

    def __init__(self) -> None:
        self.outputs: dict[tuple[int, str], Tensor] = {}

    def record(self, tokens: Tokens, name: str, way: Way) -> Tensor:
        key = id(tokens), name
        if key not in self.outputs:
            self.outputs[key] = way(tokens.leaves)
        return self.outputs[key]

    def gradients(self, tokens: Tokens, name: str, way: Way, wanted: int) -> tuple[Tensor, ...]:
        """The gradients to the first of the inputs."""
        leaves = tokens.leaves.inputs[:wanted]
        return torch.autograd.grad(self.record(tokens, name, way), leaves, tokens.d_output, retain_graph=True)


def backward(context: Context, size: AttentionSize, inputs: Sequence[Tokens]) -> None:
    """All gradients by our kernels and through folded columns; those of query, key and value by SDPA."""
    first, tolerance = inputs[0], 2 * TOLERANCES[size.dtype]
    expected, unbiased = true_gradients(first), true_gradients(first, bias=False)
    every = len(GRADIENTS)
    graphs, contestants, checks, ways = Graphs(), [], {}, {}

    def add(name: str, way: Way, wanted: int, check: Check, note: str = "") -> None:
        run = partial(graphs.gradients, name=name, way=way, wanted=wanted)
        contestants.append(contestant(context, name, run, first, BACKWARD_PRODUCTS, note))
        checks[name], ways[name] = check, way

    for backend in served(context):
        add(backend, partial(attend, backend=backend), every, Check(expected, tolerance))
        plain_way = partial(attend, bias=False, backend=backend)
        add(f"{backend}, no bias", plain_way, peer.FLEX_GRADIENTS, Check(unbiased, tolerance), "the same kernel")
    ours = list(checks)
    plain = by_kernel(context, "SDPA", peer.PLAIN_KERNELS)
    for name, kernel in plain.items():
        check = Check(unbiased, PEER_TOLERANCE)
        add(name, partial(peer.sdpa, kernel=kernel), peer.FLEX_GRADIENTS, check, NO_BIAS)
    for name, kernel in by_kernel(context, "SDPA, folded", peer.PLAIN_KERNELS).items():
        add(name, partial(peer.sdpa_folded, kernel=kernel), every, Check(expected, PEER_TOLERANCE), "of folding too")

    context.prepare(lambda tokens, named_way: graphs.record(tokens, *named_way), inputs, ways.items())
    case = f"{size.title}, backward"
    rows = compare(context, case, contestants, inputs, checks, ours)
    targets(context, case, rows, plain, BACKWARD_TARGET[size.width], size.width)


def targets(
    context: Context, case: str, rows: Mapping[str, Row], plain: Sequence[str], tflops: float, width: int
) -> None:
    """What the project set itself: the rate, the bias's cost, and SDPA without one, by its faster kernel."""
    for backend in served(context):
        context.target(f"{case} by {backend}", rate(rows[backend]), tflops, True, "TFLOP/s")
        cost = ratio(rows, backend, f"{backend}, no bias")
        context.target(f"{case} by {backend}: with the bias / without", cost, BIAS_TARGET[width], False)
        best = fastest(rows, plain)
        context.target(f"{case}: {best} without bias / {backend}", ratio(rows, best, backend), SDPA_TARGET, True)


def fastest(rows: Mapping[str, Row], names: Sequence[str]) -> str:
    """The contestant with the least median of those that were timed; the first where none was."""
    return min(names, key=lambda name: rows[name].median if rows[name].seconds else math.inf)


def memory(context: Context, size: AttentionSize, tokens: Tokens) -> None:
    """Peak memory over inputs, outputs and gradients: logits would be hundreds of times those."""
    inputs, output = tokens.nbytes, tokens.query.nbytes + 4 * tokens.query.shape[:3].numel()  # with lse
    graphs = Graphs()

    def add(what: str, backend: str, call, held: int, results: int) -> None:
        peak = context.device.peak_bytes(call, tokens)
        note = f"{backend}, {(held + peak) / 1e6:.0f} MB"
        claim = f"{size.title}, {what}: peak memory / (all that goes in and comes out)"
        context.target(claim, (held + peak) / (held + results), MEMORY_TARGET, False, note=note)

    for backend in served(context):
        way = partial(attend, backend=backend)
        gradients = partial(graphs.gradients, name=backend, way=way, wanted=len(GRADIENTS))
        gradients(tokens)
        add("forward", backend, way, inputs, output)
        add("backward", backend, gradients, inputs + output + tokens.d_output.nbytes, inputs)
