"""sphere_attention on the CPU, forward and both ways, against SDPA, FlexAttention and torch-harmonics."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks import peers
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
    both_ways,
    bytes_moved,
    draw_tokens,
    flops,
    named,
    true_gradients,
    truth,
)
from benchmarks.harness import Check, Contestant, Row, Target, compare, inputs_beyond_cache, ratio
from benchmarks.machine import MATRIX_SIZE, measure_products, peak_bytes
from benchmarks.peers import torch_attention as peer

HEADS, HEIGHT = 8, 32
WIDTHS = (64, 128)
HEIGHTS = (16, 64)  # besides HEIGHT: from 512 to 8192 tokens
QUICK_HEIGHT = 16
RADIUS = math.radians(30)
MOST_INPUTS = 4
SECONDS_PER_CONTESTANT = 12.0
OURS, PLAIN, SDPA, DENSE = "evoworld", "evoworld, no bias", "SDPA", "SDPA, dense bias"
FLEX, FOLDED, REFERENCE = "FlexAttention", "SDPA, folded", "PyTorch reference"
WITHIN = "evoworld, 30 degrees"
SDPA_TARGET, FLEX_TARGET, BOTH_WAYS_TARGET, RADIUS_TARGET, MEMORY_TARGET = 0.85, 3.0, 1.5, 1.8, 0.5
NO_BIAS = "another function: no bias"
BUILT_BEFORE = "bias [1, N, L, S] made before the clock runs, and without gradient"


class Bench:
    """Runs cases and keeps what they found."""

    def __init__(self, repeats: int, missing: list[str], quick: bool = False) -> None:
        self.repeats, self.missing = repeats, missing
        self.rows: list[Row] = []
        self.targets: list[Target] = []
        size = MATRIX_SIZE // 4 if quick else MATRIX_SIZE
        self.peaks = {dtype: measure_products(dtype, size) for dtype in (torch.float32, torch.bfloat16)}

    def compare(self, case: str, contestants: Sequence[Contestant], inputs: Sequence[Tokens], checks) -> dict[str, Row]:
        found = compare(case, contestants, inputs, checks, self.repeats, budget=SECONDS_PER_CONTESTANT)
        self.rows += found.values()
        return found

    def target(self, claim: str, measured: float, limit: float, at_least: bool = True, note: str = "") -> None:
        self.targets.append(Target(claim, measured, limit, at_least, note=note))

    def tokens(self, size: AttentionSize) -> list[Tokens]:
        """Enough inputs that none is in the cache when its turn comes, on one sphere."""
        sphere = size.sphere()
        first = size.tokens(sphere, 0)
        count = inputs_beyond_cache(first.nbytes, MOST_INPUTS)
        return [first, *(size.tokens(sphere, seed) for seed in range(1, count))]

    def contestant(self, name: str, way: Way, tokens: Tokens, note: str = "", radius: float | None = None):
        """A way to attend, forward alone."""
        work = bytes_moved(tokens), flops(tokens, PRODUCTS, radius)
        return Contestant(name, way, named, *work, note, self.peaks[tokens.query.dtype])

    def both_ways(self, name: str, way: Way, tokens: Tokens, wanted: int, note: str = "", radius: float | None = None):
        """The same with its gradients."""
        moved = bytes_moved(tokens) + bytes_moved(tokens, backward=True)
        work = moved, flops(tokens, PRODUCTS + BACKWARD_PRODUCTS, radius)
        run = partial(both_ways, way, wanted=wanted)
        return Contestant(name, run, named, *work, note, self.peaks[tokens.query.dtype])


def run(repeats: int, missing: list[str], quick: bool = False) -> tuple[list[Row], list[Target]]:
    """Rows and targets: widths, lengths, both ways, a radius, memory, torch-harmonics."""
    bench = Bench(repeats, missing, quick)
    height, widths, heights = (QUICK_HEIGHT, WIDTHS[:1], ()) if quick else (HEIGHT, WIDTHS, HEIGHTS)
    for width in widths:
        forward(bench, AttentionSize(1, height, HEADS, width, torch.float32))
    for width in widths:
        for dtype in (torch.float32, torch.bfloat16):
            forward_and_backward(bench, AttentionSize(1, height, HEADS, width, dtype))
    within_radius(bench, AttentionSize(1, height, HEADS, widths[0], torch.float32))
    for other in heights:
        lengths(bench, AttentionSize(1, other, HEADS, widths[0], torch.float32))
    memory(bench, AttentionSize(1, heights[-1] if heights else HEIGHT, HEADS, widths[0], torch.float32))
    for radius in (None, RADIUS):
        layers(bench, height * (1 if quick else 2), radius)
    return bench.rows, bench.targets


def forward(bench: Bench, size: AttentionSize) -> None:
    """Every peer, on a panorama with a bias and area weights."""
    inputs = bench.tokens(size)
    first, dtype = inputs[0], size.dtype
    mask = peer.dense_bias(first.sphere, dtype)
    made = partial(bench.contestant, tokens=first)
    contestants = [
        made(OURS, attend),
        made(PLAIN, partial(attend, bias=False), note=NO_BIAS),
        made(SDPA, peer.sdpa, note=NO_BIAS),
        made(DENSE, partial(peer.sdpa, mask=mask), note=BUILT_BEFORE),
        made(FOLDED, peer.sdpa_folded, note="folding timed too"),
        made(FLEX, peer.FlexAttention(first.sphere), note="same score function, compiled"),
        made(REFERENCE, lambda tokens: attend(tokens, backend="reference")),
    ]
    checks = dict.fromkeys((c.name for c in contestants), Check(named(truth(first)), TOLERANCES[dtype]))
    checks[PLAIN] = checks[SDPA] = Check(named(truth(first, bias=False)), TOLERANCES[dtype])
    case = f"{size.title}, forward"
    rows = bench.compare(case, contestants, inputs, checks)
    bench.target(f"{case}: {SDPA} without bias / ours", ratio(rows, SDPA, OURS), SDPA_TARGET)
    bench.target(f"{case}: {FLEX} / ours", ratio(rows, FLEX, OURS), FLEX_TARGET)


def forward_and_backward(bench: Bench, size: AttentionSize) -> None:
    """Forward and all gradients; SDPA has none to a bias."""
    inputs = bench.tokens(size)
    first, dtype = inputs[0], size.dtype
    mask = peer.dense_bias(first.sphere, dtype)
    every, rows_alone = len(GRADIENTS), peer.FLEX_GRADIENTS
    made = partial(bench.both_ways, tokens=first)
    contestants = [
        made(OURS, attend, wanted=every),
        made(PLAIN, partial(attend, bias=False), wanted=rows_alone, note=NO_BIAS),
        made(SDPA, peer.sdpa, wanted=rows_alone, note=NO_BIAS),
        made(DENSE, partial(peer.sdpa, mask=mask), wanted=rows_alone, note=BUILT_BEFORE),
        made(FOLDED, peer.sdpa_folded, wanted=every, note="folding timed too"),
    ]
    tolerance = 2 * TOLERANCES[dtype]
    loose = tolerance if dtype == torch.float32 else PEER_TOLERANCE
    expected = true_gradients(first)
    of_rows = {name: expected[name] for name in GRADIENTS[:rows_alone]}
    plain = true_gradients(first, bias=False)
    checks = {OURS: Check(expected, tolerance), PLAIN: Check(plain, tolerance), SDPA: Check(plain, loose)}
    checks |= {DENSE: Check(of_rows, loose), FOLDED: Check(expected, loose)}
    case = f"{size.title}, forward and backward"
    rows = bench.compare(case, contestants, inputs, checks)
    limit = BOTH_WAYS_TARGET if dtype == torch.bfloat16 else SDPA_TARGET
    bench.target(f"{case}: {SDPA} without bias / ours", ratio(rows, SDPA, OURS), limit)


def within_radius(bench: Bench, size: AttentionSize) -> None:
    """Keys within 30 degrees against all keys, forward and both ways; FlexAttention skips blocks of rows."""
    inputs = bench.tokens(size)
    first = inputs[0]
    near = partial(attend, radius=RADIUS)
    tolerance = TOLERANCES[size.dtype]
    every, close = (Check(named(truth(first, radius=radius)), tolerance) for radius in (None, RADIUS))
    contestants = [
        bench.contestant(OURS, attend, first, "all keys"),
        bench.contestant(WITHIN, near, first, radius=RADIUS),
        bench.contestant(FLEX, peer.FlexAttention(first.sphere, RADIUS), first, "with a block mask", RADIUS),
    ]
    case = f"{size.title}, 30 degrees, forward"
    rows = bench.compare(case, contestants, inputs, {OURS: every, WITHIN: close, FLEX: close})
    bench.target(f"{case}: all keys / those within the radius", ratio(rows, OURS, WITHIN), RADIUS_TARGET)

    every, close = (Check(true_gradients(first, radius=radius), 2 * tolerance) for radius in (None, RADIUS))
    contestants = [
        bench.both_ways(OURS, attend, first, len(GRADIENTS), "all keys"),
        bench.both_ways(WITHIN, near, first, len(GRADIENTS), radius=RADIUS),
    ]
    case = f"{size.title}, 30 degrees, forward and backward"
    rows = bench.compare(case, contestants, inputs, {OURS: every, WITHIN: close})
    bench.target(f"{case}: all keys / those within the radius", ratio(rows, OURS, WITHIN), RADIUS_TARGET)


def lengths(bench: Bench, size: AttentionSize) -> None:
    """Another number of tokens, against SDPA alone."""
    inputs = bench.tokens(size)
    first = inputs[0]
    tolerance = TOLERANCES[size.dtype]
    contestants = [bench.contestant(OURS, attend, first), bench.contestant(SDPA, peer.sdpa, first, NO_BIAS)]
    checks = {bias: Check(named(truth(first, bias)), tolerance) for bias in (True, False)}
    case = f"{size.title}, forward"
    rows = bench.compare(case, contestants, inputs, {OURS: checks[True], SDPA: checks[False]})
    bench.target(f"{case}: {SDPA} without bias / ours", ratio(rows, SDPA, OURS), SDPA_TARGET)


def memory(bench: Bench, size: AttentionSize) -> None:
    """What a call holds beyond its inputs, results and what autograd keeps, over the logits of one head."""
    tokens = size.tokens(size.sphere(), 0)
    one_head = 4 * size.length**2
    results = {
        "forward": (lambda: attend(tokens), tokens.query.nbytes),
        "forward and backward": (lambda: both_ways(attend, tokens), 2 * tokens.query.nbytes + tokens.nbytes),
    }
    for way, (call, kept) in results.items():
        beyond = _warm_peak(call) - kept
        note = f"{beyond / 1e6:.0f} MB; one head's logits would take {one_head / 1e6:.0f} MB"
        claim = f"{size.title}, {way}: memory beyond inputs and results / one head's logits"
        bench.target(claim, max(beyond, 0.0) / one_head, MEMORY_TARGET, at_least=False, note=note)


def layers(bench: Bench, height: int, radius: float | None) -> None:
    """torch-harmonics' layers as it benchmarks them: one head of 64 channels."""
    harmonics = peers.load("torch_harmonics_attention", bench.missing)
    if harmonics is None:
        return
    name = "AttentionS2" if radius is None else "NeighborhoodAttentionS2"
    layer = harmonics.Layer(height, torch.float32, "cpu", radius)
    shape = (1, 1, 2 * height**2, harmonics.CHANNELS)
    inputs = [draw_tokens(shape, torch.float32, layer.sphere, seed) for seed in range(MOST_INPUTS)]
    first = inputs[0]
    degrees = "" if radius is None else f", {math.degrees(radius):.0f} degrees"
    title = f"{OP} {height}x{2 * height}, one head of {harmonics.CHANNELS}{degrees}"
    ours = partial(attend, radius=radius)
    note = "with its four projections, which change nothing"
    tolerance = TOLERANCES[torch.float32]
    made = partial(bench.contestant, tokens=first, radius=radius)
    contestants = [made(OURS, ours), made(name, layer, note=note)]
    rows = bench.compare(f"{title}, forward", contestants, inputs, Check(named(truth(first, True, radius)), tolerance))
    bench.target(f"{title}, forward: {name} / ours", ratio(rows, name, OURS), 1.0)

    made = partial(bench.both_ways, tokens=first, wanted=peer.FLEX_GRADIENTS, radius=radius)
    contestants = [made(OURS, ours), made(name, layer, note=note)]
    expected = true_gradients(first, True, radius)
    check = Check({n: expected[n] for n in GRADIENTS[: peer.FLEX_GRADIENTS]}, 2 * tolerance)
    rows = bench.compare(f"{title}, forward and backward", contestants, inputs, check)
    bench.target(f"{title}, forward and backward: {name} / ours", ratio(rows, name, OURS), 1.0)


def _warm_peak(call: Callable[[], Tensor | tuple[Tensor, ...]]) -> float:
    """Peak memory of a second call: the first one loads code and fills what lasts."""
    call()
    return peak_bytes(call)
