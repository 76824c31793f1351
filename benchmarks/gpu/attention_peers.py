"""sphere_attention against peers that compile for long or need much memory: FlexAttention, torch-harmonics, a mask."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import peers
from benchmarks.attention import (
    BACKWARD_PRODUCTS,
    GRADIENTS,
    OP,
    PEER_TOLERANCE,
    PRODUCTS,
    TOLERANCES,
    AttentionSize,
    Sphere,
    Tokens,
    attend,
    both_ways,
    draw_tokens,
    dtype_name,
    named,
    true_gradients,
    truth,
)
from benchmarks.gpu.attention import RADIUS, SIZES, add_masked, compare, contestant, prepare, served
from benchmarks.gpu.context import Context
from benchmarks.harness import Check, ratio
from benchmarks.peers import torch_attention as peer

FLEX, ATTENTION_S2, NEIGHBORHOOD = "FlexAttention", "AttentionS2", "NeighborhoodAttentionS2"
CALL = "SDPA, log weights as a mask"
FLEX_TARGET, ATTENTION_S2_TARGET = 1.3, 30.0
ROWS = GRADIENTS[: peer.FLEX_GRADIENTS]  # of query, key and value, which all peers have
# What torch-harmonics is benchmarked on by its authors: a panorama of one degree, one head, and this radius.
ONE_DEGREE, CHANNELS, THEIR_RADIUS = 180, 64, 0.03
PUBLISHED = "82.4 ms on an H100 in its own benchmark"
ROOM = 1.2  # of a mask's size, that must be free


def run(context: Context) -> None:
    """Adds rows and targets: FlexAttention for each size, torch-harmonics' layers, a long sequence's dense mask."""
    if not served(context):
        return
    best = served(context)[0]
    for size in SIZES[:1] if context.tiny else SIZES:
        flex(context, size, best)
    one_degree(context, best)
    for radius in (RADIUS, THEIR_RADIUS):
        neighborhood(context, best, radius)
    if not context.tiny:
        flex_within_radius(context, SIZES[0], best)
        dense(context, SIZES[0], best)


def flex(context: Context, size: AttentionSize, best: str) -> None:
    """Forward, and both ways: FlexAttention has no backward on the CPU."""
    inputs = prepare(context, size)
    first, ours = inputs[0], partial(attend, backend=best)
    theirs = peer.FlexAttention(first.sphere)
    ways = {"forward": (PRODUCTS, ours, theirs, named(truth(first)), "same score function, compiled")}
    if context.device.name == "cuda":
        mine, others = partial(both_ways, ours), partial(both_ways, theirs, wanted=len(ROWS))
        note = "gradients to query, key and value alone"
        ways["forward and backward"] = PRODUCTS + BACKWARD_PRODUCTS, mine, others, rows_of(true_gradients(first)), note
    for way, (products, mine, others, expected, note) in ways.items():
        contestants = [
            contestant(context, best, mine, first, products),
            contestant(context, FLEX, others, first, products, note),
        ]
        case = f"{size.title}, {way} ({FLEX})"
        checks = {best: Check(expected, 2 * TOLERANCES[size.dtype]), FLEX: Check(expected, PEER_TOLERANCE)}
        rows = compare(context, case, contestants, inputs, checks, [best])
        context.target(f"{case}: {FLEX} / {best}", ratio(rows, FLEX, best), FLEX_TARGET, True)


def flex_within_radius(context: Context, size: AttentionSize, best: str) -> None:
    """Keys within 30 degrees: FlexAttention skips blocks of the panorama's rows."""
    inputs = prepare(context, size)
    first = inputs[0]
    contestants = [
        contestant(context, best, partial(attend, radius=RADIUS, backend=best), first, PRODUCTS, "", RADIUS),
        contestant(context, FLEX, peer.FlexAttention(first.sphere, RADIUS), first, PRODUCTS, "block mask", RADIUS),
    ]
    check = Check(named(truth(first, radius=RADIUS)), TOLERANCES[size.dtype])
    compare(context, f"{size.title}, 30 degrees, forward ({FLEX})", contestants, inputs, check, [best])


def one_degree(context: Context, best: str) -> None:
    """AttentionS2 as its authors benchmark it, and the call within it, which needs no library."""
    height, dtype = context.height(ONE_DEGREE), torch.bfloat16
    harmonics = peers.load("torch_harmonics_attention", context.findings.missing)
    layer = harmonics.Layer(height, dtype, context.device.name) if harmonics else None
    sphere = layer.sphere if layer else AttentionSize(1, height, 1, CHANNELS, dtype).sphere(context.device.name)
    inputs = layer_inputs(context, replace(sphere, zonal=sphere.zonal[:, :1].contiguous()), dtype)
    first = inputs[0]
    mask = sphere.log_weight.to(dtype).view(1, 1, 1, -1)

    def call(tokens: Tokens) -> Tensor:
        return scaled_dot_product_attention(tokens.query, tokens.key, tokens.value, attn_mask=mask)

    contestants = [
        contestant(context, best, partial(attend, backend=best), first, PRODUCTS),
        contestant(context, CALL, call, first, PRODUCTS, f"the call within {ATTENTION_S2}"),
    ]
    if layer:
        contestants.append(contestant(context, ATTENTION_S2, layer, first, PRODUCTS, PUBLISHED))
    expected = named(truth(first))
    checks = dict.fromkeys((CALL, ATTENTION_S2), Check(expected, PEER_TOLERANCE))
    case = f"{one_head(dtype)}, forward"
    rows = compare(context, case, contestants, inputs, {best: Check(expected, TOLERANCES[dtype]), **checks}, [best])
    for name, note in ((ATTENTION_S2, PUBLISHED), (CALL, f"the call within {ATTENTION_S2}")):
        context.target(f"{case}: {name} / {best}", ratio(rows, name, best), ATTENTION_S2_TARGET, True, note=note)


def neighborhood(context: Context, best: str, radius: float) -> None:
    """NeighborhoodAttentionS2, forward and both ways."""
    harmonics = peers.load("torch_harmonics_attention", context.findings.missing)
    if harmonics is None:
        return
    dtype = torch.bfloat16 if context.device.name == "cuda" else torch.float32  # its CPU kernels know no other
    layer = harmonics.Layer(context.height(ONE_DEGREE), dtype, context.device.name, radius)
    inputs = layer_inputs(context, layer.sphere, dtype)
    first, ours = inputs[0], partial(attend, radius=radius, backend=best)
    mine, theirs = (partial(both_ways, way, wanted=len(ROWS)) for way in (ours, layer))
    ways = {
        "forward": (PRODUCTS, ours, layer, named(truth(first, True, radius))),
        "forward and backward": (
            PRODUCTS + BACKWARD_PRODUCTS,
            mine,
            theirs,
            rows_of(true_gradients(first, True, radius)),
        ),
    }
    for way, (products, mine, theirs, expected) in ways.items():
        contestants = [
            contestant(context, best, mine, first, products, "", radius),
            contestant(context, NEIGHBORHOOD, theirs, first, products, "with its four projections", radius),
        ]
        checks = {best: Check(expected, 2 * TOLERANCES[dtype]), NEIGHBORHOOD: Check(expected, PEER_TOLERANCE)}
        case = f"{one_head(dtype)}, {math.degrees(radius):.2g} degrees, {way}"
        compare(context, case, contestants, inputs, checks, [best])


def dense(context: Context, size: AttentionSize, best: str) -> None:
    """SDPA with the mask of a long sequence, where it fits; last, as no kernel is used to such a mask."""
    mask_bytes = size.heads * size.length**2 * size.dtype.itemsize
    free = torch.cuda.mem_get_info()[0]
    if free < ROOM * mask_bytes:
        context.note(f"{size.title}: no dense bias of {mask_bytes / 1e9:.0f} GB; {free / 1e9:.0f} GB are free.")
        return
    inputs = prepare(context, size)
    first = inputs[0]
    contestants = [contestant(context, best, partial(attend, backend=best), first, PRODUCTS)]
    checks = {best: Check(named(truth(first)), TOLERANCES[size.dtype])}

    def add(name, way, check, note="") -> None:
        contestants.append(contestant(context, name, way, first, PRODUCTS, note))
        checks[name] = check

    add_masked(context, add, first)
    compare(context, f"{size.title}, forward (dense bias)", contestants, inputs, checks, [best])


def rows_of(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: gradients[name] for name in ROWS}


def one_head(dtype: torch.dtype) -> str:
    return f"{OP} {ONE_DEGREE}x{2 * ONE_DEGREE}, one head of {CHANNELS} {dtype_name(dtype)}"


def layer_inputs(context: Context, sphere: Sphere, dtype: torch.dtype) -> list[Tokens]:
    """Tokens for one head of 64 channels."""
    draw = partial(draw_tokens, (1, 1, len(sphere.directions), CHANNELS), dtype, sphere)
    first = draw(0)
    return [first, *(draw(seed) for seed in range(1, context.inputs_count(first.nbytes)))]
