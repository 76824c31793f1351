"""What patch_attention puts into a model: classes whose attention is sphere_attention."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from evoworld.ops import fold, sphere_attention
from evoworld.ops.library import check, without_autocast

_OP = "patch_attention"


class Sphere(nn.Module):
    """What a patched module knows of the sphere; never called, so that only its parameter counts."""

    def __init__(
        self,
        name: str,  # of the patched module
        directions: Tensor,  # [L, 3]
        key_log_weight: Tensor | None,  # [L]
        zonal: nn.Parameter | None,  # [N, K + 1]
        radius: float | None,
        named: bool,  # whether the caller asked for this very module
    ) -> None:
        super().__init__()
        self.name, self.radius, self.named = name, radius, named
        self.zonal = zonal
        # No buffers: they would be rounded with a model that is made half precision, and are no state of it.
        self.directions = directions.detach().clone()
        self.key_log_weight = None if key_log_weight is None else key_log_weight.detach().clone()
        self._repeated: tuple[int, Tensor, Tensor | None] | None = None
        # nn.TransformerEncoderLayer would pass its attention by, unless something within it has a hook.
        self.register_forward_hook(_no_hook)

    def _apply(self, fn: Any, recurse: bool = True) -> Sphere:
        super()._apply(fn, recurse)
        device = fn(self.directions[:0]).device
        if device.type != "meta":  # from where they would not come back
            self.directions = self.directions.to(device)
            self.key_log_weight = None if self.key_log_weight is None else self.key_log_weight.to(device)
            self._repeated = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_repeated": None}

    def fits(self, *lengths: int) -> bool:
        """Whether the lengths are the same whole number of frames."""
        length = lengths[0]
        return length > 0 and length % self.directions.shape[0] == 0 and lengths == (length,) * len(lengths)

    def attend(
        self,
        query: Tensor,  # [B, N, L, D]
        key: Tensor,  # [B, N, L, D]
        value: Tensor,  # [B, N, L, D]
        mask: Tensor | None = None,  # [1 or B, L]
        scale: float | None = None,
    ) -> Tensor:  # [B, N, L, D]
        directions, log_weight = self._tokens(query)
        if mask is None or query.shape[0] == 0:
            parts = [(query, key, value, log_weight)]
        else:
            batch = query.shape[0]
            check(_OP, mask.shape[0] in (1, batch), "mask", f"a row for each of {batch} sequences", mask.shape[0])
            masks = mask if log_weight is None else mask + log_weight
            each = batch if mask.shape[0] == 1 else 1
            parts = zip(query.split(each), key.split(each), value.split(each), masks)
        outputs = [
            sphere_attention(q, k, v, directions, directions, self.zonal, weight, self.radius, scale)
            for q, k, v, weight in parts
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def weights(
        self,
        query: Tensor,  # [B, N, L, D]
        key: Tensor,  # [B, N, L, D]
        mask: Tensor | None,  # [1 or B, L]
    ) -> Tensor:  # [B, N, L, L]
        """The probabilities themselves, for those who ask for L x L of them."""
        directions, log_weight = self._tokens(query)
        dtype = torch.promote_types(query.dtype, torch.float32)
        with without_autocast(query.device.type):  # would round the bias
            wide_query, wide_key = fold(query.to(dtype), key.to(dtype), directions, directions, self.zonal)
            logits = wide_query @ wide_key.mT
        for weight in (log_weight, mask):
            if weight is not None:
                logits = logits + weight.view(-1, 1, 1, weight.shape[-1])
        if self.radius is not None and self.radius < torch.pi:
            far = torch.cdist(directions, directions, compute_mode="donot_use_mm_for_euclid_dist")
            logits = logits.masked_fill(far > 2 * math.sin(self.radius / 2), -torch.inf)
        empty = (logits == -torch.inf).all(-1, keepdim=True)
        return logits.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0).to(query.dtype)

    def _tokens(self, query: Tensor) -> tuple[Tensor, Tensor | None]:  # [B, N, L, D]
        """Directions [L, 3] and key_log_weight [L] of as many frames; the same tensors in every call."""
        frames = query.shape[2] // self.directions.shape[0]
        if frames == 1:
            return self.directions, self.key_log_weight
        if torch.compiler.is_compiling() or is_fake(query):
            return self._repeat(frames)
        if self._repeated is None or self._repeated[0] != frames:
            with torch.inference_mode(False):
                self._repeated = (frames, *self._repeat(frames))
        return self._repeated[1:]

    def _repeat(self, frames: int) -> tuple[Tensor, Tensor | None]:
        log_weight = self.key_log_weight
        return self.directions.repeat(frames, 1), None if log_weight is None else log_weight.repeat(frames)


class Patched:
    """Base of the classes made at run time, which pickle would not find by their names."""

    unpatched_class: type
    wrap: Callable[[type], Callable[..., Any]]

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:
        return _new_patched, (self.unpatched_class, type(self).wrap), *super().__reduce_ex__(protocol)[2:]


@functools.cache
def patched_class(cls: type, wrap: Callable[[type], Callable[..., Any]]) -> type:
    method = wrap(cls)
    members = {method.__name__: method, "unpatched_class": cls, "wrap": wrap}
    return type(f"Spherical{cls.__name__}", (Patched, cls), members)


def _new_patched(cls: type, wrap: Callable[[type], Callable[..., Any]]) -> object:
    patched = patched_class(cls, wrap)
    return patched.__new__(patched)


def wrap_module(cls: type) -> Callable[..., Any]:
    @functools.wraps(cls.forward)
    def forward(self, *args, **kwargs):
        return _run_on_sphere(self.sphere, cls.forward, self, *args, **kwargs)

    return forward


def wrap_processor(cls: type) -> Callable[..., Any]:
    @functools.wraps(cls.__call__)  # diffusers passes on what the signature names
    def __call__(self, attention, *args, **kwargs):
        sphere = attention.sphere
        context = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
        alone = f"None, or {sphere.name!r} among modules to say that it attends to the sphere"
        check(_OP, context is None or sphere.named, "encoder_hidden_states", alone, "a tensor")
        return _run_on_sphere(sphere, cls.__call__, self, attention, *args, **kwargs)

    return __call__


def wrap_multihead(cls: type) -> Callable[..., Any]:
    @functools.wraps(cls.forward)
    def forward(
        self,
        query,
        key,
        value,
        key_padding_mask=None,
        need_weights=True,
        attn_mask=None,
        average_attn_weights=True,
        is_causal=False,
    ):
        sphere = self.sphere
        dense = "a dense tensor, as with nn.TransformerEncoder(enable_nested_tensor=False)"
        check(_OP, not query.is_nested, "query", dense, "a nested one")
        dim = 1 if self.batch_first and query.ndim == 3 else 0
        lengths = query.shape[dim], key.shape[dim]
        if query is not key and not sphere.named:
            one = f"one tensor, or {sphere.name!r} among modules to say that both lie on the sphere"
            check(_OP, not sphere.fits(*lengths), "query and key", one, f"two of {lengths[0]} tokens")
            return cls.forward(
                self, query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        check(_OP, sphere.fits(*lengths), "query and key", _frames(sphere), f"{lengths} tokens in {sphere.name!r}")
        _check_no_more(sphere, self.dropout if self.training else 0.0, is_causal)
        check(_OP, attn_mask is None, "attn_mask", "None (key_padding_mask can be given)", "a tensor")

        inputs = query, key, value
        if query.ndim == 2:
            inputs = (x[None] for x in inputs)
        elif not self.batch_first:
            inputs = (x.transpose(0, 1) for x in inputs)
        packed = self.in_proj_weight is not None
        weights = (
            self.in_proj_weight.chunk(3) if packed else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        )
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        heads = [
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip(inputs, weights, biases)
        ]
        mask = None
        if key_padding_mask is not None:  # boolean: true where a key is not to be seen, unlike in torch's function
            seen = ~key_padding_mask if key_padding_mask.dtype == torch.bool else key_padding_mask
            mask = _key_mask(seen.reshape(-1, 1, 1, lengths[1]))
        output = self.out_proj(sphere.attend(*heads, mask).transpose(1, 2).flatten(2))
        probabilities = sphere.weights(*heads[:2], mask) if need_weights else None
        if need_weights and average_attn_weights:
            probabilities = probabilities.mean(1)
        if query.ndim == 2:
            return output[0], probabilities[0] if need_weights else None
        return output if self.batch_first else output.transpose(0, 1), probabilities

    return forward


def _run_on_sphere(sphere: Sphere, function: Callable[..., Any], *args, **kwargs) -> Any:
    """Calls the function with torch's attention replaced in it."""
    replacement = _Replacement(sphere)
    with replacement:
        output = function(*args, **kwargs)
    check(
        _OP,
        replacement.replaced > 0,
        "model",
        f"F.scaled_dot_product_attention (in diffusers the backend 'native') on {_frames(sphere)} in {sphere.name!r}",
        f"calls with (queries, keys) of {replacement.others}",
    )
    return output


class _Replacement(TorchFunctionMode):
    """Within it, torch's attention among tokens of the sphere is sphere_attention; any other stays what it was."""

    def __init__(self, sphere: Sphere) -> None:
        super().__init__()
        self.sphere = sphere
        self.replaced = 0
        self.others: list[tuple[int, int]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func is Tensor.unflatten:  # in Python, by super(): under a mode torch.compile cannot follow it
            return torch.unflatten(*args, **kwargs)
        return func(*args, **kwargs)

    def _attention(
        self,
        query: Tensor,  # [B, N, L, D] or [N, L, D]
        key: Tensor,  # [B, N, S, D] or [N, S, D]
        value: Tensor,  # [B, N, S, Dv] or [N, S, Dv]
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        lengths = query.shape[-2], key.shape[-2]
        if not self.sphere.fits(*lengths):
            self.others.append(lengths)
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        self.replaced += 1
        _check_no_more(self.sphere, dropout_p, is_causal)
        check(_OP, query.ndim in (3, 4), "query", "3 or 4 dimensions", query.ndim)
        mask = None if attn_mask is None else _key_mask(attn_mask)
        heads = query.shape[-3]
        if enable_gqa:
            key, value = (x.repeat_interleave(heads // x.shape[-3], -3) for x in (key, value))
        if self.sphere.zonal is not None:
            found = f"{heads} heads in {self.sphere.name!r}"
            check(_OP, heads == self.sphere.zonal.shape[0], "query", f"{self.sphere.zonal.shape[0]} heads", found)
        if query.ndim == 3:
            return self.sphere.attend(query[None], key[None], value[None], mask, scale)[0]
        return self.sphere.attend(query, key, value, mask, scale)


def _key_mask(
    mask: Tensor,  # [S] with any of L, N and B before it
) -> Tensor:  # [1 or B, S]
    """What a mask of keys alone adds to their logits."""
    for dim in (-2, -3):
        if mask.ndim >= -dim and mask.shape[dim] > 1:
            check(
                _OP, mask.stride(dim) == 0, "attn_mask", "a mask of keys alone, such as [B, 1, 1, S]", list(mask.shape)
            )
            mask = mask.narrow(dim, 0, 1)
    mask = mask.reshape(-1, mask.shape[-1])
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)


def _check_no_more(sphere: Sphere, dropout: float, is_causal: bool) -> None:
    expected = f"attention without dropout in {sphere.name!r} (set it to 0, or call model.eval())"
    check(_OP, dropout == 0, "dropout", expected, dropout)
    check(_OP, not is_causal, "is_causal", f"False in {sphere.name!r}", is_causal)


def _frames(sphere: Sphere) -> str:
    return f"T x {sphere.directions.shape[0]} tokens"


def _no_hook(*_: object) -> None:
    """Does nothing, and is never called."""
