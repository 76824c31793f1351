"""Every kernel of the attention stages once, before they are timed: Triton and Inductor keep what they compile."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from benchmarks.attention import Tokens, attend, both_ways
from benchmarks.gpu.attention import QUICK_SIZES, RADIUS, SIZES, prepare, served
from benchmarks.gpu.context import Context
from benchmarks.peers import torch_attention as peer


def run(context: Context) -> None:
    """Times nothing and finds nothing: whatever is wrong, the stages that come after say."""
    sizes = QUICK_SIZES if context.quick else SIZES
    for size in sizes:
        tokens = prepare(context, size)[0]
        for backend in served(context):
            way = partial(attend, backend=backend)
            call(partial(both_ways, way), tokens)
            call(partial(both_ways, partial(way, bias=False), wanted=peer.FLEX_GRADIENTS), tokens)
            call(partial(way, radius=RADIUS), tokens)
    if context.quick or context.device.name == "cpu":
        return
    for size in sizes:
        tokens = prepare(context, size)[0]
        flex = peer.FlexAttention(tokens.sphere)
        call(flex, tokens)
        call(partial(both_ways, flex, wanted=peer.FLEX_GRADIENTS), tokens)


def call(function: Callable[[Tokens], object], tokens: Tokens) -> None:
    with suppress(Exception):
        function(tokens)
