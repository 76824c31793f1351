"""sphere_attention: attention that knows the geometry of the sphere."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.utils.weak import WeakIdKeyDictionary

from evoworld import reference

from .backend import select
from .compact_order import compact_order
from .library import autocast_dtype, check, check_geometry, check_tensor, define, namespace, without_autocast

_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor query_directions, Tensor key_directions, Tensor? zonal, "
    "Tensor? key_log_weight, Tensor? query_order, Tensor? key_order, float? radius, float scale"
)
_MIN_WIDTH, _MAX_WIDTH = 16, 128
_MAX_DEGREE = 3
_UNIT_TOLERANCE = 1e-5  # of a length: directions that were normalised in float32 are a hundred times closer


def _rows(like, rows, width):
    """A tensor [B, N, rows, width] whose memory is [B, rows, N, width]: merging the heads afterwards is free."""
    return like.new_empty(like.shape[0], rows, like.shape[1], width).transpose(1, 2)


def _fake(query, key, value, *_):
    output = _rows(query, query.shape[2], value.shape[3])
    return output, query.new_empty(query.shape[:3], dtype=torch.float32)


def _backward_fake(d_output, d_lse, output, lse, query, key, value, *rest):
    zonal, log_weight = rest[2:4]
    wants_query, wants_key_value, wants_zonal, wants_log_weight = rest[-4:]
    return (
        _rows(query, query.shape[2], query.shape[3]) if wants_query else query.new_empty(0),
        _rows(query, key.shape[2], key.shape[3]) if wants_key_value else query.new_empty(0),
        _rows(query, key.shape[2], value.shape[3]) if wants_key_value else query.new_empty(0),
        lse.new_empty(zonal.shape if wants_zonal else 0),
        lse.new_empty(log_weight.shape if wants_log_weight else 0),
    )


def _save(ctx, inputs, output):
    *tensors, ctx.radius, ctx.scale = inputs
    ctx.save_for_backward(*output, *tensors)


def _backward(ops, ctx, d_output, d_lse):
    output, lse, *tensors = ctx.saved_tensors
    wants_query, wants_key, wants_value, _, _, wants_zonal, wants_log_weight, *_ = ctx.needs_input_grad
    d_query, d_key, d_value, d_zonal, d_log_weight = ops.sphere_attention_backward(
        _with_rows(d_output),
        d_lse.contiguous(),
        output,
        lse,
        *tensors,
        ctx.radius,
        ctx.scale,
        wants_query,
        wants_key or wants_value,
        wants_zonal,
        wants_log_weight,
    )
    return (
        d_query if wants_query else None,
        d_key if wants_key else None,
        d_value if wants_value else None,
        None,
        None,
        d_zonal if wants_zonal else None,
        d_log_weight if wants_log_weight else None,
        *[None] * 4,
    )


define(f"sphere_attention({_INPUTS}) -> (Tensor, Tensor)", _fake, _backward, _save, triton_file="sphere_attention")
define(
    f"sphere_attention_backward(Tensor d_output, Tensor d_lse, Tensor output, Tensor lse, {_INPUTS}, bool wants_query, "
    "bool wants_key_value, bool wants_zonal, bool wants_key_log_weight) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_fake,
    triton_file="sphere_attention_backward",
)


def sphere_attention(
    query: Tensor,  # [B, N, L, D]
    key: Tensor,  # [B, N, S, D]
    value: Tensor,  # [B, N, S, Dv]
    query_directions: Tensor,  # [L, 3]
    key_directions: Tensor,  # [S, 3]
    zonal: Tensor | None = None,  # [N, K + 1]
    key_log_weight: Tensor | None = None,  # [S]
    radius: float | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # [B, N, L, Dv], [B, N, L]
    """Softmax attention between tokens that lie on a sphere, with a bias by their angle.

    With P_l the Legendre polynomials, x and y the directions of queries and keys::

        s_ij = scale * q_i . k_j + sum_l zonal[n, l] P_l(x_i . y_j) + key_log_weight_j
        output_i = sum_j softmax_j(s_ij) v_j

    With the logarithm of each key's solid angle (on a panorama, of cos latitude) as ``key_log_weight`` the sum over
    keys is an integral over the sphere. ``zonal``, a function of the angle alone, commutes with rotations; ``zonal =
    [0, kappa]`` is the von Mises-Fisher density. No kernel makes a tensor of L x S elements (the reference
    does), and every backend gives the same bits each time.

    Args:
        query: ``[B, N, L, D]``, D from 16 to 128; float32, float16 or bfloat16 (float64: reference). Any strides, such
            as those of a projection ``[B, L, N, D]`` with its axes swapped.
        key: ``[B, N, S, D]``, dtype of query.
        value: ``[B, N, S, Dv]``, Dv from 16 to 128, dtype of query.
        query_directions: ``[L, 3]`` unit vectors, float32 or float64.
        key_directions: ``[S, 3]`` unit vectors, float32 or float64.
        zonal: ``[N, K + 1]``, K at most 3: for each head the strengths of P_0 (which moves only the lse) to P_K.
        key_log_weight: ``[S]``, added to the logits of a key; -inf, or anything below -1e30, masks it.
        radius: keys further away on the great circle, in radians, count for nothing; None: all count.
        scale: of ``q . k``; ``D ** -0.5`` if not given. Triton takes 0 and sizes from 1e-6 on.
        return_lse: whether to return the logarithms of the softmax's sums too, by which the results of parts of the
            keys can be merged.

    Returns:
        output ``[B, N, L, Dv]``, dtype of query, and with ``return_lse`` lse ``[B, N, L]``, float32. A query without a
        key gets output 0 and lse -inf.

    Gradients: to query, key, value, zonal and key_log_weight, through output and lse; none of
    gradients, which only the reference has.

    Raises:
        ValueError: for an argument of another shape, dtype or device, directions that are not unit vectors (not
            looked at while a graph is captured or compiled; on a GPU once for each tensor, as looking waits for the
            GPU), a radius that is negative or NaN, a scale that is not finite.

    Source: attention as an integral over the sphere, Bonev et al., "Attention on the sphere", 2025; zonal functions and
    the addition theorem, Mueller, "Spherical harmonics", 1966; one pass over the keys, Dao, "FlashAttention-2", 2023.

    Example:
        >>> import torch
        >>> from evoworld.geometry import Panorama
        >>> from evoworld.ops import sphere_attention
        >>> panorama = Panorama(4, 8)
        >>> directions, solid_angle = panorama.directions().view(-1, 3), panorama.solid_angle().flatten()
        >>> query, key = torch.zeros(2, 1, 2, 32, 16)  # alike, so that each query sees the mean over the sphere
        >>> height = directions[None, None, :, 1:].expand(1, 2, 32, 2).repeat(1, 1, 1, 8)
        >>> mean = sphere_attention(query, key, height, directions, directions, key_log_weight=solid_angle.log())
        >>> mean.shape, mean.abs().max().item() < 1e-6
        (torch.Size([1, 2, 32, 16]), True)
    """
    op = "sphere_attention"
    query, key, value = _check_tokens(op, query, key, value)
    query_directions = _check_directions(op, "query_directions", query_directions, query)
    key_directions = _check_directions(op, "key_directions", key_directions, key)
    zonal, key_log_weight = check_bias(op, zonal, key_log_weight, key)
    radius, scale = check_radius(op, radius), check_scale(op, "scale", scale, query.shape[-1] ** -0.5)

    backend = select(op, query.device, torch.promote_types(query.dtype, torch.float32))
    if backend == "reference":
        with without_autocast(query.device.type):
            output, lse = reference.sphere_attention(
                query, key, value, query_directions, key_directions, zonal, key_log_weight, radius, scale, True
            )
    else:
        output, lse = namespace(backend).sphere_attention(
            _with_rows(query),
            _with_rows(key),
            _with_rows(value),
            query_directions,
            key_directions,
            zonal,
            key_log_weight,
            None if radius is None else compact_order(query_directions),
            None if radius is None else compact_order(key_directions),
            radius,
            scale,
        )
    return (output, lse) if return_lse else output


def _with_rows(tensor: Tensor) -> Tensor:
    """The tensor, copied only where its last dimension is not contiguous."""
    # An empty tensor of any strides is contiguous for torch, so that contiguous() would return it.
    return tensor if tensor.stride(-1) == 1 else tensor.clone(memory_format=torch.contiguous_format)


def _check_tokens(op: str, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    check_tensor(op, "query", query, ("B", "N", "L", "D"))
    dtype = autocast_dtype(query.device.type)
    if dtype is not None:  # what torch does with the arguments of its own attention
        check_tensor(op, "key", key, ("B", "N", "S", "D"))
        check_tensor(op, "value", value, ("B", "N", "S", "Dv"))
        query, key, value = (x if x.dtype == torch.float64 else x.to(dtype) for x in (query, key, value))
    batch, heads, _, width = query.shape
    check_tensor(op, "key", key, (batch, heads, "S", width), query, (query.dtype,))
    check_tensor(op, "value", value, (batch, heads, key.shape[2], "Dv"), query, (query.dtype,))
    for name, found in (("query", width), ("value", value.shape[3])):
        check(op, _MIN_WIDTH <= found <= _MAX_WIDTH, name, f"rows of {_MIN_WIDTH} to {_MAX_WIDTH} elements", found)
    return query, key, value


def _check_directions(op: str, name: str, directions: Tensor, tokens: Tensor) -> Tensor:
    """The directions of tokens [B, N, rows, D] as kernels take them, in the precision that goes with those."""
    checked = check_geometry(op, name, directions, (tokens.shape[2], 3), tokens)
    check_unit(op, name, directions)
    return checked.detach().to(torch.promote_types(tokens.dtype, torch.float32)).contiguous()


_found_unit = WeakIdKeyDictionary()  # tensors on a GPU, with their version, whose values were looked at


def check_unit(op: str, name: str, directions: Tensor) -> None:
    if torch.compiler.is_compiling() or directions.is_meta or is_fake(directions) or directions.shape[0] == 0:
        return
    if directions.is_cuda:
        version = None if directions.is_inference() else directions._version
        if torch.cuda.is_current_stream_capturing() or (version, True) == _found_unit.get(directions, (None, False)):
            return
        _found_unit[directions] = (version, version is not None)
    length = directions.detach().norm(dim=-1)
    error = (length - 1).abs().nan_to_num(torch.inf)
    worst = error.argmax()
    if not error[worst] <= _UNIT_TOLERANCE:
        _found_unit.pop(directions, None)
        check(op, False, name, "unit vectors", f"one of length {length[worst].item():.6g} at {worst.item()}")


def check_bias(
    op: str,
    zonal: Tensor | None,  # [N, K + 1]
    key_log_weight: Tensor | None,  # [S]
    key: Tensor,  # [B, N, S, D]
) -> tuple[Tensor | None, Tensor | None]:
    """Strengths and weights in the precision that they are computed in; a model may keep them in another."""
    dtype = torch.promote_types(key.dtype, torch.float32)
    if zonal is not None:
        check_tensor(op, "zonal", zonal, (key.shape[1], "K + 1"), key)
        count = zonal.shape[1]
        check(op, 1 <= count <= _MAX_DEGREE + 1, "zonal", f"1 to {_MAX_DEGREE + 1} strengths a head", count)
        zonal = zonal.to(dtype).contiguous()
    if key_log_weight is not None:
        check_tensor(op, "key_log_weight", key_log_weight, (key.shape[2],), key)
        key_log_weight = key_log_weight.to(dtype).contiguous()
    return zonal, key_log_weight


def check_radius(op: str, radius: float | None) -> float | None:
    """The radius; None where it keeps every key."""
    if radius is None:
        return None
    if not (_is_number(radius) and radius >= 0):  # torch.compile knows no repr() of a number that may vary
        check(op, False, "radius", "None or radians >= 0", repr(radius))
    return None if radius >= math.pi else float(radius)


def check_scale(op: str, name: str, scale: float | None, default: float) -> float:
    if scale is None:
        return default
    if not (_is_number(scale) and -math.inf < scale < math.inf):
        check(op, False, name, "None or a finite number", repr(scale))
    return float(scale)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
