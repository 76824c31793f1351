"""sphere_attention by what torch has: SDPA without bias, with a dense one, with folded columns; FlexAttention."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import pad, scaled_dot_product_attention

from benchmarks.attention import Sphere, Tokens
from evoworld import ops
from evoworld.reference.sphere_attention import legendre, max_chord2

# The kernels behind SDPA on a GPU: those that take no mask at all, and those that take any.
PLAIN_KERNELS = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
MASK_KERNELS = {"efficient": SDPBackend.EFFICIENT_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
FLEX_GRADIENTS = 3  # those to query, key and value


def sdpa(tokens: Tokens, mask: Tensor | None = None, kernel: SDPBackend | None = None) -> Tensor:
    """torch's fused attention, by any of its kernels or by one."""
    with _only(kernel):
        return scaled_dot_product_attention(tokens.query, tokens.key, tokens.value, attn_mask=mask)


def sdpa_folded(tokens: Tokens, kernel: SDPBackend | None = None) -> Tensor:
    """The same with the bias folded into query and key, and value padded to their width."""
    sphere, width = tokens.sphere, tokens.query.shape[-1]
    scale = width**-0.5
    directions = sphere.directions
    query, key = ops.fold(
        tokens.query, tokens.key, directions, directions, sphere.zonal, sphere.log_weight, kernel_scale=scale
    )
    value = pad(tokens.value, (0, key.shape[-1] - width))
    with _only(kernel):
        return scaled_dot_product_attention(query, key, value, scale=scale)[..., :width]


def dense_bias(sphere: Sphere, dtype: torch.dtype) -> Tensor:  # [1, N, L, L]
    """The bias as the mask that SDPA takes, which has to have the tokens' dtype."""
    directions = sphere.directions
    bias = directions.new_empty(1, len(sphere.zonal), len(directions), len(directions), dtype=dtype)
    cosine = directions @ directions.T
    for head, strengths in enumerate(sphere.zonal):
        polynomials = legendre(cosine, len(strengths) - 1)
        bias[0, head] = sum(s * p for s, p in zip(strengths, polynomials, strict=True)) + sphere.log_weight
    return bias


class FlexAttention:
    """torch's FlexAttention with the same score function, compiled for the shapes that it is first called with."""

    def __init__(self, sphere: Sphere, radius: float | None = None) -> None:
        torch.compiler.reset()  # what other cases compiled must not count against the limit of recompilations
        self.compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
        self.score = score_function(sphere)
        self.mask = None if radius is None else block_mask(sphere.directions, radius)

    def __call__(self, tokens: Tokens) -> Tensor:
        return self.compiled(tokens.query, tokens.key, tokens.value, score_mod=self.score, block_mask=self.mask)


def score_function(sphere: Sphere):
    """A von Mises-Fisher bias and log weights, as FlexAttention takes them."""
    x, y, z = columns(sphere.directions)
    kappa, log_weight = sphere.zonal[:, 1].detach().contiguous(), sphere.log_weight.detach()

    def score(logit, batch, head, query, key):
        cosine = x[query] * x[key] + y[query] * y[key] + z[query] * z[key]
        return logit + kappa[head] * cosine + log_weight[key]

    return score


def block_mask(directions: Tensor, radius: float) -> BlockMask:
    """The blocks of tokens, in the order of the panorama's rows, that have any pair within the radius."""
    x, y, z = columns(directions)
    limit = max_chord2(radius)

    def near(batch, head, query, key):
        dx, dy, dz = x[query] - x[key], y[query] - y[key], z[query] - z[key]
        return dx * dx + dy * dy + dz * dz <= limit

    length = len(directions)
    return create_block_mask(near, None, None, length, length, device=directions.device)


def columns(directions: Tensor) -> Sequence[Tensor]:  # three of [L]
    return directions.T.contiguous().unbind()


@contextmanager
def _only(kernel: SDPBackend | None) -> Iterator[None]:
    if kernel is None:
        yield
    else:
        with sdpa_kernel(kernel):
            yield
