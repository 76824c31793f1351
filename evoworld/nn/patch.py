"""patch_attention: sphere_attention in place of the attention of an existing model."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from fnmatch import fnmatchcase
from types import FunctionType, MethodType

import torch
from torch import Tensor, nn

from evoworld.ops.library import check, check_tensor
from evoworld.ops.sphere_attention import check_radius, check_unit

from .attention import area_log_weight, zonal_parameter
from .patched import Patched, Sphere, patched_class, wrap_module, wrap_multihead, wrap_processor

_OP = "patch_attention"
_HEADS = ("num_heads", "heads", "num_attention_heads", "n_heads", "n_head", "nhead")  # what models call N
_SPHERE = "sphere"  # the submodule that a patched module gets


def patch_attention(
    model: nn.Module,
    directions: Tensor,  # [L, 3]
    zonal_degree: int | None = 1,
    area_weighted: bool = True,
    key_log_weight: Tensor | None = None,  # [L]
    radius: float | None = None,
    modules: Iterable[str] | None = None,
) -> nn.Module:
    """Lets the self-attention of a model know where its tokens lie on the sphere; in place.

    Each attention module computes, instead of ``softmax(scale q k) v``, `evoworld.ops.sphere_attention` with a bias by
    angle, weights by area and a radius. It gets a submodule ``sphere`` with the parameter ``zonal [N, K + 1]``, zero at
    first, so optimisers made from now on and state dicts see it; its weights stay as they are. With ``area_weighted =
    False`` and no radius the model computes what it did until ``zonal`` is trained.

    What is patched, unless ``modules`` says otherwise:

    * the self-attention of diffusers' transformers (WanTransformer3DModel and others), by their attention processors,
      which run as they are but for the attention itself; cross-attention to a text is left alone;
    * ``nn.MultiheadAttention`` where query and key are one tensor, in ``nn.TransformerEncoder`` too.

    Any other module that calls ``F.scaled_dot_product_attention`` is patched when ``modules`` names it.

    Args:
        model: changed in place. `unpatch_attention` changes it back.
        directions: ``[L, 3]`` unit vectors, float32 or float64, of one frame's tokens in the model's order, such as
            ``Panorama(H, W).directions()`` for H x W patches. Sequences of T L tokens are T such frames, one after the
            other, which attend to each other.
        zonal_degree: K, at most 3; None: no bias by angle, and no parameter for it.
        area_weighted: whether keys count by cos(latitude), as the pixels of an equirectangular grid should.
        key_log_weight: ``[L]``, logarithms of weights of the keys in place of those.
        radius: tokens further away on the great circle, in radians, are not attended to; None: all are.
        modules: names of the modules to patch as ``model.named_modules()`` gives them, with ``*`` and ``?`` as
            wildcards. ``nn.MultiheadAttention`` is then patched whether or not query and key are one tensor.

    Returns:
        model.

    Raises:
        ValueError: when nothing is found to patch, a module is patched already or cannot be, directions are no unit
            vectors; and when the model is called: tokens that are not T L, attention that is causal, has dropout in
            training, or a mask which is not one of keys alone. A module that
            recomputes its own call of torch's attention in the backward (reentrant checkpointing inside it) cannot be
            patched; checkpointing around the whole module can.

    Example:
        >>> from evoworld.geometry import Panorama
        >>> layer = nn.TransformerEncoderLayer(d_model=64, nhead=4, dropout=0.0, batch_first=True)
        >>> tokens = torch.randn(1, 8 * 16, 64)
        >>> plain = layer(tokens)
        >>> layer = patch_attention(layer, Panorama(8, 16).directions(), area_weighted=False)
        >>> torch.allclose(layer(tokens), plain, atol=1e-5), layer.self_attn.sphere.zonal.shape
        (True, torch.Size([4, 2]))
    """
    check(_OP, isinstance(model, nn.Module), "model", "an nn.Module", type(model).__name__)
    check_tensor(_OP, "directions", directions, ("L", 3), dtypes=(torch.float32, torch.float64))
    check(_OP, directions.shape[0] > 0, "directions", "at least one", 0)
    check_unit(_OP, "directions", directions)
    check_radius(_OP, radius)
    if key_log_weight is not None:
        check_tensor(_OP, "key_log_weight", key_log_weight, (directions.shape[0],))
    elif area_weighted:
        key_log_weight = area_log_weight(directions)

    spheres = {}
    for name, module in _chosen(model, modules).items():
        _check_patchable(name, module)
        weight = next(module.parameters(), directions)
        zonal = None
        if zonal_degree is not None:
            zonal = zonal_parameter(_OP, _num_heads(name, module), zonal_degree)
            zonal = nn.Parameter(zonal.to(weight.device, weight.dtype if weight.is_floating_point() else None))
        sphere = Sphere(name, directions, key_log_weight, zonal, radius, named=modules is not None)
        spheres[module] = sphere._apply(lambda tensor, device=weight.device: tensor.to(device))
    for module, sphere in spheres.items():  # only now: nothing is changed if one of them cannot be
        module.add_module(_SPHERE, sphere)
        if _has_processor(module):
            processor = copy.copy(module.processor)  # modules may share one
            processor.__class__ = patched_class(type(processor), wrap_processor)
            module.set_processor(processor)
        else:
            wrap = wrap_multihead if isinstance(module, nn.MultiheadAttention) else wrap_module
            module.__class__ = patched_class(type(module), wrap)
    return model


def unpatch_attention(model: nn.Module) -> nn.Module:
    """Undoes `patch_attention` in every module of the model, which is returned; what ``zonal`` learned is lost.

    Example:
        >>> attention = nn.MultiheadAttention(64, 4)
        >>> patched = patch_attention(attention, torch.eye(3))
        >>> unpatch_attention(patched) is attention, hasattr(attention, "sphere")
        (True, False)
    """
    for module in list(model.modules()):
        if isinstance(getattr(module, _SPHERE, None), Sphere):
            delattr(module, _SPHERE)
            for patched in (module, getattr(module, "processor", None)):
                if isinstance(patched, Patched):
                    patched.__class__ = patched.unpatched_class
    return model


def _chosen(model: nn.Module, modules: Iterable[str] | None) -> dict[str, nn.Module]:
    """The modules to patch, by name."""
    named = dict(model.named_modules())
    if modules is not None:
        patterns = [modules] if isinstance(modules, str) else list(modules)
        for pattern in patterns:
            check(
                _OP, any(fnmatchcase(name, pattern) for name in named), "modules", "names in the model", repr(pattern)
            )
        return {name: x for name, x in named.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
    chosen = {
        name: module
        for name, module in named.items()
        if isinstance(module, nn.MultiheadAttention)
        or (_has_processor(module) and not getattr(module, "is_cross_attention", False))
    }
    if not chosen:
        expected = "diffusers' attention or nn.MultiheadAttention in it, or modules= with names of what calls torch's"
        likely = [name for name, x in named.items() if any(isinstance(vars(x).get(a), int) for a in _HEADS)]
        check(_OP, False, "model", expected, f"none; names that may do: {likely}")
    return chosen


def _has_processor(module: nn.Module) -> bool:
    return hasattr(module, "processor") and callable(getattr(module, "set_processor", None))


def _num_heads(name: str, module: nn.Module) -> int:
    found = [getattr(module, attribute, None) for attribute in _HEADS]
    found = [heads for heads in found if isinstance(heads, int)]
    expected = f"modules with their number of heads as an attribute, one of {list(_HEADS)}"
    check(_OP, bool(found), "modules", expected, f"{name!r}, a {type(module).__name__}")
    return found[0]


def _check_patchable(name: str, module: nn.Module) -> None:
    check(_OP, not hasattr(module, _SPHERE), "model", "modules that are not patched yet", repr(name))
    if isinstance(module, nn.MultiheadAttention):
        check(
            _OP,
            module.bias_k is None and not module.add_zero_attn,
            "model",
            "no bias_k and no add_zero_attn",
            repr(name),
        )
        check(_OP, 16 <= module.head_dim <= 128, "model", "16 to 128 channels a head", f"{module.head_dim} in {name!r}")
    if _has_processor(module):
        plain = isinstance(module.processor, FunctionType | MethodType)
        check(_OP, not plain, "model", "processors that are objects of a class", repr(name))
    else:
        scripted = isinstance(module, torch.jit.ScriptModule) or "forward" in vars(module)
        check(_OP, not scripted, "model", "modules whose forward is that of their class", repr(name))
