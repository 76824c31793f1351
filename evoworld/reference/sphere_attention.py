"""sphere_attention in plain PyTorch: the specification of every backend."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sphere_attention(
    query: Tensor,  # [B, N, L, D]
    key: Tensor,  # [B, N, S, D]
    value: Tensor,  # [B, N, S, Dv]
    query_directions: Tensor,  # [L, 3] unit
    key_directions: Tensor,  # [S, 3] unit
    zonal: Tensor | None = None,  # [N, K + 1]
    key_log_weight: Tensor | None = None,  # [S]
    radius: float | None = None,  # radians
    scale: float | None = None,  # default D^-0.5
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # [B, N, L, Dv], [B, N, L]
    """Attention whose logits know where on the sphere queries and keys lie.

    With P_l the Legendre polynomials, x and y the directions of queries and keys::

        s_ij = scale * q_i . k_j + sum_l zonal[n, l] P_l(x_i . y_j) + key_log_weight_j
        output_i = sum_j softmax_j(s_ij) v_j        lse_i = log sum_j exp(s_ij)

    Keys with ``|x_i - y_j|^2 > 4 sin^2(radius / 2)``, which are those further away than the radius on the great circle,
    count for nothing. A query that is left without a key gets output 0, lse -inf and zero gradients. Half precision is
    widened to float32 and the output rounded back; lse stays float32.

    The gradient, with ``p`` the softmax and ``delta_i = d_output_i . output_i - d_lse_i``::

        d_s_ij = p_ij (d_output_i . v_j - delta_i)     d_value_j = sum_i p_ij d_output_i
        d_query_i = scale sum_j d_s_ij k_j             d_zonal[n, l] = sum_ij d_s_ij P_l(x_i . y_j)
        d_key_j = scale sum_i d_s_ij q_i               d_key_log_weight_j = sum_i d_s_ij
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    x, y = query_directions.to(dtype), key_directions.to(dtype)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = scale * query.to(dtype) @ key.to(dtype).mT  # [B, N, L, S]
    if zonal is not None:
        bias = zip(zonal.to(dtype).unbind(1), legendre(x @ y.T, zonal.shape[1] - 1))
        logits = logits + sum(strength[:, None, None] * polynomial for strength, polynomial in bias)
    if key_log_weight is not None:
        logits = logits + key_log_weight.to(dtype)
    if radius is not None and radius < math.pi:  # in float32 antipodes can be further apart than 2
        logits = logits.masked_fill(chord2(x, y) > max_chord2(radius), -torch.inf)

    alone = (logits == -torch.inf).all(-1, keepdim=True)  # queries without a key
    logits = logits.masked_fill(alone, 0)
    probabilities = torch.softmax(logits, -1).masked_fill(alone, 0)
    output = (probabilities @ value.to(dtype)).to(query.dtype)
    lse = torch.logsumexp(logits, -1).masked_fill(alone[..., 0], -torch.inf)
    return (output, lse) if return_lse else output


def legendre(
    cosine: Tensor,  # [...]
    degree: int,
) -> list[Tensor]:  # degree + 1 of [...]
    """P_0 to P_degree by Bonnet's recursion, ``(l + 1) P_{l+1} = (2l + 1) t P_l - l P_{l-1}``."""
    polynomials = [torch.ones_like(cosine), cosine]
    for l in range(1, degree):  # noqa: E741 - the degree's usual name
        polynomials.append(((2 * l + 1) * cosine * polynomials[l] - l * polynomials[l - 1]) / (l + 1))
    return polynomials[: degree + 1]


def chord2(
    x: Tensor,  # [L, 3]
    y: Tensor,  # [S, 3]
) -> Tensor:  # [L, S]
    """Squared distances through the sphere: exact where cosines are not, at small angles."""
    return (x[:, None] - y).square().sum(-1)


def max_chord2(radius: float) -> float:
    """The squared distance through the sphere of two directions a radius apart, in radians."""
    return 4 * math.sin(min(radius, math.pi) / 2) ** 2
