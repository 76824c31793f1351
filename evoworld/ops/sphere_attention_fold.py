"""fold: the bias of sphere_attention as columns of query and key, for any other attention kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .library import check, check_geometry, check_tensor
from .sphere_attention import check_bias, check_scale, check_unit

_MULTIPLE = 8  # columns come in groups of 16 bytes of half precision, which other kernels ask for


def fold(
    query: Tensor,  # [B, N, L, D]
    key: Tensor,  # [B, N, S, D]
    query_directions: Tensor,  # [L, 3]
    key_directions: Tensor,  # [S, 3]
    zonal: Tensor | None = None,  # [N, K + 1]
    key_log_weight: Tensor | None = None,  # [S]
    scale: float | None = None,
    kernel_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:  # [B, N, L, D'], [B, N, S, D']
    """Query and key whose plain product has the logits of `sphere_attention`: ``kernel_scale * q' . k' = s``.

    By the addition theorem ``P_l(x . y) = sum_m h_lm(x) h_lm(y)`` with 2l + 1 polynomials h, so the whole bias is a dot
    product of (K + 1)^2 further columns. FlashAttention, cuDNN, a ring attention or torch's own then give the same
    result with ``softmax(q' k') v``; where a kernel needs value as wide as key, pad it with zeros.

    In half precision each column is split into a high and a low part (the log weight into three): 16 columns for K = 1,
    32 for K = 2, 48 for K = 3, and the bias is good to about 2^-16 of its size. In float32 there are 8, 16 and 16.

    Args:
        query, key, query_directions, key_directions, zonal, key_log_weight, scale: as for `sphere_attention`; any D.
        kernel_scale: what the other kernel multiplies ``q' . k'`` by. The query is multiplied by ``scale /
            kernel_scale`` and rounded, so in half precision give the kernel's own scale, ``D ** -0.5`` of the old D,
            rather than 1 unless that is a power of two.

    Returns:
        query' ``[B, N, L, D']`` and key' ``[B, N, S, D']`` in the dtype of query. A log weight of -inf becomes the
        lowest number that half of the dtype's range holds, so a query all of whose keys are masked gets their mean
        instead of 0.

    Gradients: to query, key, zonal and key_log_weight.

    Raises:
        ValueError: for an argument of another shape, dtype or device, directions that are not unit vectors, a scale
            that is not finite or a kernel_scale that is not positive.

    Source: addition theorem, Mueller, "Spherical harmonics", 1966.

    Example:
        >>> import torch
        >>> from evoworld.geometry import Panorama
        >>> from evoworld.ops import fold, sphere_attention
        >>> directions = Panorama(4, 8).directions().view(-1, 3)
        >>> query, key, value = torch.randn(3, 1, 2, 32, 16)
        >>> zonal = torch.tensor([[0.0, 3.0], [0.0, -1.0]])
        >>> wide_query, wide_key = fold(query, key, directions, directions, zonal)
        >>> plain = (wide_query @ wide_key.mT).softmax(-1) @ value
        >>> torch.allclose(plain, sphere_attention(query, key, value, directions, directions, zonal), atol=1e-5)
        True
    """
    op = "fold"
    check_tensor(op, "query", query, ("B", "N", "L", "D"))
    batch, heads, length, width = query.shape
    check_tensor(op, "key", key, (batch, heads, "S", width), query, (query.dtype,))
    dtype = torch.promote_types(query.dtype, torch.float32)
    x = check_geometry(op, "query_directions", query_directions, (length, 3), query).to(dtype)
    y = check_geometry(op, "key_directions", key_directions, (key.shape[2], 3), key).to(dtype)
    check_unit(op, "query_directions", query_directions)
    check_unit(op, "key_directions", key_directions)
    zonal, key_log_weight = check_bias(op, zonal, key_log_weight, key)
    scale = check_scale(op, "scale", scale, width**-0.5)
    kernel_scale = check_scale(op, "kernel_scale", kernel_scale, 1.0)
    check(op, kernel_scale > 0, "kernel_scale", "a positive number", kernel_scale)

    columns = [(_times(query, scale / kernel_scale), key)]
    if zonal is not None:
        for degree in range(1, zonal.shape[1]):
            strength = zonal[:, degree, None, None] / kernel_scale  # [N, 1, 1]
            columns += _products(strength * zonal_columns(x, degree), zonal_columns(y, degree), query.dtype)
    constant = _constant(zonal, key_log_weight, y, heads) / kernel_scale  # [N, S]
    lowest = torch.finfo(query.dtype).min / 2
    parts = _split(constant.clamp(min=lowest), query.dtype, 1 if query.dtype == dtype else 3)
    columns += [(query.new_ones(length, 1), part[..., None]) for part in parts]

    wide_query, wide_key = (
        torch.cat([column.expand(batch, heads, -1, -1) for column in side], -1) for side in zip(*columns)
    )
    missing = -wide_query.shape[-1] % _MULTIPLE
    return pad(wide_query, (0, missing)), pad(wide_key, (0, missing))


def zonal_columns(
    directions: Tensor,  # [L, 3] unit
    degree: int,
) -> Tensor:  # [L, 2 degree + 1]
    """Polynomials h_m with ``sum_m h_m(x) h_m(y) = P_degree(x . y)``: real spherical harmonics times
    ``sqrt(4 pi / (2 degree + 1))``."""
    x, y, z = directions.unbind(-1)
    if degree == 1:
        columns = x, y, z
    elif degree == 2:
        columns = (
            3**0.5 * x * y,
            3**0.5 * y * z,
            3**0.5 * x * z,
            3**0.5 / 2 * (x - y) * (x + y),
            (3 * z * z - 1) / 2,
        )
    elif degree == 3:
        columns = (
            10**0.5 / 4 * x * (x * x - 3 * y * y),
            10**0.5 / 4 * y * (3 * x * x - y * y),
            15**0.5 * x * y * z,
            15**0.5 / 2 * z * (x - y) * (x + y),
            6**0.5 / 4 * x * (5 * z * z - 1),
            6**0.5 / 4 * y * (5 * z * z - 1),
            z * (5 * z * z - 3) / 2,
        )
    else:
        raise ValueError(f"degree: expected 1, 2 or 3, got {degree}")
    return torch.stack(columns, -1)


def _times(query: Tensor, factor: float) -> Tensor:
    """The product, rounded once."""
    return query if factor == 1 else (query.to(torch.promote_types(query.dtype, torch.float32)) * factor).to(query)


def _constant(zonal: Tensor | None, key_log_weight: Tensor | None, y: Tensor, heads: int) -> Tensor:  # [N, S]
    """What a logit has that does not depend on the query."""
    constant = y.new_zeros(heads, y.shape[0])
    if zonal is not None:
        constant = constant + zonal[:, :1]
    return constant if key_log_weight is None else constant + key_log_weight


def _products(
    of_query: Tensor,  # [N, L, M]
    of_key: Tensor,  # [S, M]
    dtype: torch.dtype,
) -> list[tuple[Tensor, Tensor]]:
    """Columns of this dtype whose products sum up to those of the wider ones."""
    if of_query.dtype == dtype:
        return [(of_query, of_key)]
    (q_high, q_low), (k_high, k_low) = _split(of_query, dtype, 2), _split(of_key, dtype, 2)
    return [(q_high, k_high), (q_high, k_low), (q_low, k_high)]


def _split(x: Tensor, dtype: torch.dtype, count: int) -> list[Tensor]:
    """Parts of a narrower dtype that sum up to x, the largest first."""
    parts = []
    for _ in range(count):
        parts.append(x.to(dtype))
        x = x - parts[-1].to(x.dtype)
    return parts
