"""Strided inputs, as projections and caches give them: the same results, and no copy of them."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import evoworld
from evoworld.ops import sphere_attention
from evoworld.testing import backends, evaluate, on_device
from evoworld.testing_attention import ATTENTION_CASES

BACKENDS = backends("sphere_attention")
on_every_backend = pytest.mark.parametrize(("backend", "device"), BACKENDS)
on_every_kernel = pytest.mark.parametrize(("backend", "device"), [b for b in BACKENDS if b[0] != "reference"])
DTYPES = [torch.float32, torch.bfloat16]
LAID_OUT = ("query", "key", "value")


def projection(x):
    """[B, N, L, D] as [B, L, N, D] with axes swapped."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def part_of_one_projection(x):
    """[B, N, L, D] as one of the three parts of [B, L, 3, N, D]."""
    batch, heads, rows, width = x.shape
    memory = x.new_full((batch, rows, 3, heads, width), float("nan"))
    memory[:, :, 1] = x.transpose(1, 2)
    return memory[:, :, 1].transpose(1, 2)


def rows_of_a_cache(x):
    """Every other row of a longer tensor."""
    memory = x.new_full((*x.shape[:2], 2 * x.shape[2] + 1, x.shape[3]), float("nan"))
    memory[:, :, 1::2] = x
    return memory[:, :, 1::2]


def odd_alignment(x):
    """Rows of odd length from the second element of memory: no row begins on a border of 16 bytes."""
    memory = x.new_full((*x.shape[:3], x.shape[3] + 3), float("nan"))
    memory[..., 1:-2] = x
    return memory[..., 1:-2]


def columns(x):
    """Widths that do not lie together: the one layout that is copied."""
    return x.transpose(2, 3).contiguous().transpose(2, 3)


def reversed_axes(x):
    """Memory [L, B, N, D], as sequence-first models have it."""
    return x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)


LAYOUTS = [projection, part_of_one_projection, rows_of_a_cache, odd_alignment, reversed_axes, columns]


def arguments_of(name, dtype, device):
    arguments = on_device(ATTENTION_CASES[name].build(), device)
    return {k: x.to(dtype) if k in LAID_OUT else x for k, x in arguments.items()}


def assert_close(found, expected, dtype):
    """Alignment may choose another order of summation, no more."""
    for name in expected:
        scale = max(1, expected[name].abs().max().item())
        allowed = {"rtol": 0, "atol": 4 * torch.finfo(dtype).eps * scale}
        torch.testing.assert_close(found[name], expected[name], **allowed, msg=lambda m, n=name: f"{n}: {m}")


@on_every_backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["panorama", "width_17_16", "radius"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(backend, device, layout, name, dtype):
    arguments = arguments_of(name, dtype, device)
    strided = {k: layout(x) if k in LAID_OUT else x for k, x in arguments.items()}
    assert all(torch.equal(strided[k], arguments[k]) and not strided[k].is_contiguous() for k in LAID_OUT)
    with evoworld.backend(backend):
        assert_close(
            evaluate(sphere_attention, strided, device=device),
            evaluate(sphere_attention, arguments, device=device),
            dtype,
        )


@on_every_backend
@pytest.mark.parametrize("name", ["projection", "radius"])
def test_one_key_for_all_heads_and_batches(backend, device, name):
    """Expanded keys and values, strides 0, as in multi-query attention; their gradients are sums."""
    arguments = on_device(ATTENTION_CASES[name].build(), device)
    shape = {k: arguments[k].shape for k in ("key", "value")}
    shared = {k: arguments[k][:1, :1].contiguous() for k in ("key", "value")}

    def expanded(**leaves):
        parts = {k: leaves[k].expand(shape[k]) for k in shared}
        assert all(0 in x.stride() for x in parts.values())
        return sphere_attention(**{**leaves, **parts})

    def repeated(**leaves):
        return sphere_attention(**{**leaves, **{k: leaves[k].repeat(*shape[k][:2], 1, 1) for k in shared}})

    with evoworld.backend(backend):
        found = evaluate(expanded, {**arguments, **shared}, device=device)
        expected = evaluate(repeated, {**arguments, **shared}, device=device)
    assert_close(found, expected, torch.float32)


@on_every_backend
def test_geometry_may_be_strided_too(backend, device):
    arguments = on_device(ATTENTION_CASES["radius"].build(), device)
    strided = dict(arguments)
    for name in ("query_directions", "key_directions"):
        strided[name] = arguments[name].T.contiguous().T
    strided["zonal"] = torch.stack([arguments["zonal"]] * 2, -1)[..., 1]
    strided["key_log_weight"] = torch.stack([arguments["key_log_weight"]] * 2, -1)[:, 0]
    assert not any(strided[k].is_contiguous() for k in strided if k.endswith(("directions", "zonal", "weight")))
    with evoworld.backend(backend):
        found, expected = (evaluate(sphere_attention, x, device=device) for x in (strided, arguments))
    assert_close(found, expected, torch.float32)


def upstreams(output, lse):
    """Gradients of the output and of lse that do not lie in memory as these do, by name; the same numbers."""
    draw = torch.Generator().manual_seed(1)
    d_output = torch.randn(output.shape, generator=draw).to(output)
    d_lse = torch.randn(lse.shape, generator=draw).to(lse)
    yield "contiguous", d_output, d_lse
    for layout in LAYOUTS:
        yield layout.__name__, layout(d_output), layout(d_lse[..., None])[..., 0]


@on_every_backend
@pytest.mark.parametrize("name", ["panorama", "width_16_41", "bfloat16_40", "radius"])
def test_gradients_may_come_in_any_layout(backend, device, name):
    arguments = on_device(ATTENTION_CASES[name].build(), device)
    leaves = {k: arguments[k].requires_grad_() for k in (*LAID_OUT, "zonal", "key_log_weight")}
    expected = None
    with evoworld.backend(backend):
        outputs = sphere_attention(**arguments)
        for which, *upstream in upstreams(*outputs):
            found = torch.autograd.grad(outputs, list(leaves.values()), upstream, retain_graph=True)
            found = dict(zip(leaves, found, strict=True))
            expected = expected or found
            for key in found:
                scale = expected[key].abs().max().item()
                allowed = {"rtol": 0, "atol": 4 * torch.finfo(arguments["query"].dtype).eps * scale}
                torch.testing.assert_close(
                    found[key], expected[key], **allowed, msg=lambda m, w=which, k=key: f"{w}, {k}: {m}"
                )


@on_every_backend
@pytest.mark.parametrize("name", ["small", "no_queries", "no_keys", "no_batch"])
def test_expanded_gradients(backend, device, name):
    """``sum().backward()`` sends a gradient of strides 0, of no elements too."""
    arguments = on_device(ATTENTION_CASES[name].build(), device)
    leaves = [arguments[name].requires_grad_() for name in LAID_OUT]
    with evoworld.backend(backend):
        output, lse = sphere_attention(**arguments)
        found = torch.autograd.grad(output.sum() + lse.sum(), leaves, retain_graph=True)
        ones = torch.ones_like(output), torch.ones_like(lse)
        expected = torch.autograd.grad((output, lse), leaves, ones)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


class Copies(TorchDispatchMode):
    """Records which operations of torch copy."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        if name in ("aten::clone", "aten::copy_", "aten::_to_copy", "aten::contiguous", "aten::cat"):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@on_every_kernel
@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_columns_are_copied(backend, device, layout):
    """By torch, before the kernel; what kernels allocate is looked at in test_memory_use.py."""
    arguments = arguments_of("width_17_16", torch.bfloat16, device)
    strided = {k: layout(x).requires_grad_() if k in LAID_OUT else x for k, x in arguments.items()}
    d_output = projection(
        torch.randn_like(arguments["value"][:, :, :1].expand(-1, -1, arguments["query"].shape[2], -1))
    )
    d_lse = torch.randn(d_output.shape[:3], device=device)
    with evoworld.backend(backend), Copies() as copies:
        outputs = sphere_attention(**strided)
        torch.autograd.grad(outputs, [strided[k] for k in LAID_OUT], (d_output, d_lse))
    assert len(copies.names) == (3 if layout is columns else 0), copies.names
