"""What sphere_attention is timed on: tokens on a panorama, the ways to attend, the truth of them, and their work."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import evoworld
from evoworld import ops, reference
from evoworld.geometry import Panorama
from evoworld.reference.sphere_attention import chord2, max_chord2

OP = "sphere_attention"
OUTPUTS = ("output",)
GRADIENTS = ("d_query", "d_key", "d_value", "d_zonal", "d_key_log_weight")
PRODUCTS, BACKWARD_PRODUCTS = 2, 5  # matrix products of a multiply-add for each pair of tokens and element of a row
MULTIPLY_ADD = 2
LEAST_KAPPA, MOST_KAPPA = 1.0, 10.0  # of the heads' von Mises-Fisher densities: nearly flat, and 26 degrees wide
# Values and gradients point along their tokens' directions by so much: else d_zonal would be a sum of noise alone, and
# compare rounding with rounding.
ALONG = 2.0
# Logits that the reference holds at once, in float32: it is run on the queries in chunks.
MOST_LOGITS = 1 << 26
# Of the largest value: what is rounded is rounded, here probabilities and results.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# Of peers in half precision, which round more: a mask or log weights, or sums of gradients on the way.
PEER_TOLERANCE = 5e-2


@dataclass(frozen=True)
class Sphere:
    """Where tokens lie, the same for queries and keys, and what that adds to their logits."""

    directions: Tensor  # [L, 3]
    zonal: Tensor  # [N, K + 1]
    log_weight: Tensor  # [L]: log of each token's solid angle


@dataclass(frozen=True)
class Tokens:
    """One call's tensors."""

    query: Tensor  # [B, N, L, D]
    key: Tensor  # [B, N, L, D]
    value: Tensor  # [B, N, L, D]
    d_output: Tensor  # [B, N, L, D]
    sphere: Sphere

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What has gradients, in the order of GRADIENTS."""
        return self.query, self.key, self.value, self.sphere.zonal, self.sphere.log_weight

    @cached_property
    def leaves(self) -> Tokens:
        """The same tokens, recorded by autograd."""
        query, key, value, zonal, log_weight = (x.detach().requires_grad_() for x in self.inputs)
        return Tokens(query, key, value, self.d_output, Sphere(self.sphere.directions, zonal, log_weight))

    @property
    def nbytes(self) -> int:
        return self.query.nbytes + self.key.nbytes + self.value.nbytes


Way = Callable[[Tokens], Tensor]  # -> [B, N, L, D]


@dataclass(frozen=True)
class AttentionSize:
    """`batch` panoramas of `height` x 2 `height` tokens, with heads of `width` elements."""

    batch: int
    height: int
    heads: int
    width: int
    dtype: torch.dtype

    @property
    def length(self) -> int:
        return 2 * self.height**2

    @property
    def title(self) -> str:
        return f"{OP} {self.batch} x {self.length}, N = {self.heads}, D = {self.width} {dtype_name(self.dtype)}"

    def sphere(self, device: str = "cpu") -> Sphere:
        panorama = Panorama(self.height, 2 * self.height)
        kappa = torch.linspace(LEAST_KAPPA, MOST_KAPPA, self.heads)
        tensors = (
            panorama.directions().reshape(-1, 3),
            torch.stack([torch.zeros(self.heads), kappa], 1),
            panorama.solid_angle().flatten().log(),
        )
        return Sphere(*(x.contiguous().to(device) for x in tensors))

    def tokens(self, sphere: Sphere, seed: int) -> Tokens:
        return draw_tokens((self.batch, self.heads, self.length, self.width), self.dtype, sphere, seed)


def dtype_name(dtype: torch.dtype) -> str:
    """Without torch's name before it."""
    return str(dtype).removeprefix("torch.")


def draw_tokens(shape: Sequence[int], dtype: torch.dtype, sphere: Sphere, seed: int) -> Tokens:
    """Random tokens [B, N, L, D], on the device of their sphere."""
    draw = torch.Generator(sphere.directions.device).manual_seed(seed)
    query, key, value, d_output = (torch.randn(*shape, generator=draw, device=draw.device) for _ in range(4))
    for rows in (value, d_output):
        rows[..., :3] += ALONG * sphere.directions
    return Tokens(*(rows.to(dtype) for rows in (query, key, value, d_output)), sphere)


def attend(tokens: Tokens, bias: bool = True, radius: float | None = None, backend: str | None = None) -> Tensor:
    """The op, by the best backend or a given one."""
    sphere = tokens.sphere
    zonal, log_weight = (sphere.zonal, sphere.log_weight) if bias else (None, None)
    arguments = tokens.query, tokens.key, tokens.value, sphere.directions, sphere.directions, zonal, log_weight, radius
    if backend is None:
        return ops.sphere_attention(*arguments)
    with evoworld.backend(backend):
        return ops.sphere_attention(*arguments)


def both_ways(way: Way, tokens: Tokens, wanted: int = len(GRADIENTS)) -> tuple[Tensor, ...]:
    """Forward, and gradients to the first of the inputs: 3 for what knows no bias."""
    leaves = tokens.leaves
    return torch.autograd.grad(way(leaves), leaves.inputs[:wanted], leaves.d_output)


def truth(tokens: Tokens, bias: bool = True, radius: float | None = None) -> Tensor:
    """The output in float32, by the reference."""
    with torch.no_grad():
        return torch.cat(list(_reference(tokens, bias, radius)), 2)


def true_gradients(tokens: Tokens, bias: bool = True, radius: float | None = None) -> dict[str, Tensor]:
    """The gradients in float32, by the reference."""
    inputs = [x.detach().float().requires_grad_() for x in tokens.inputs]
    sphere = Sphere(tokens.sphere.directions, *inputs[3:])
    wide = Tokens(*inputs[:3], tokens.d_output.float(), sphere)
    start = 0
    for part in _reference(wide, bias, radius):
        stop = start + part.shape[2]
        part.backward(wide.d_output[:, :, start:stop])
        start = stop
    return {name: x.grad for name, x in zip(GRADIENTS, inputs, strict=True) if x.grad is not None}


def _reference(tokens: Tokens, bias: bool, radius: float | None):
    """Outputs of one chunk of the queries after another."""
    sphere = tokens.sphere
    query, key, value = (x.float() for x in (tokens.query, tokens.key, tokens.value))
    batch, heads, keys = key.shape[:3]
    rows = max(MOST_LOGITS // (batch * heads * keys), 1)
    for start in range(0, query.shape[2], rows):
        chosen = slice(start, start + rows)
        yield reference.sphere_attention(
            query[:, :, chosen],
            key,
            value,
            sphere.directions[chosen],
            sphere.directions,
            sphere.zonal if bias else None,
            sphere.log_weight if bias else None,
            radius,
        )


def count_pairs(directions: Tensor, radius: float | None = None) -> int:
    """Pairs of tokens that are not masked."""
    if radius is None or radius >= math.pi:
        return len(directions) ** 2
    parts = directions.split(max(MOST_LOGITS // 4 // len(directions), 1))
    return sum(int((chord2(part, directions) <= max_chord2(radius)).sum()) for part in parts)


def flops(tokens: Tokens, products: int = PRODUCTS, radius: float | None = None) -> float:
    """Of the matrix products alone, rows as wide as they are: what the bias adds is cost, not work."""
    batch, heads, _, width = tokens.query.shape
    pairs = count_pairs(tokens.sphere.directions, radius)
    return float(batch * heads * pairs * width * products * MULTIPLY_ADD)


def bytes_moved(tokens: Tokens, backward: bool = False) -> int:
    """Query, key, value read and the output written; backward its gradient and their gradients besides."""
    once = tokens.nbytes + tokens.query.nbytes
    return 2 * once + tokens.query.nbytes if backward else once


def named(found: Tensor | Sequence[Tensor]) -> dict[str, Tensor]:
    """An output or gradients for a check."""
    if isinstance(found, Tensor):
        return {OUTPUTS[0]: found.detach()}
    return dict(zip(GRADIENTS, found, strict=False))
