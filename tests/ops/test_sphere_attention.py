"""sphere_attention: every backend against the reference, and what torch expects of an op."""

import pytest
import torch

import evoworld
from evoworld.ops import sphere_attention
from evoworld.ops.compact_order import compact_order
from evoworld.ops.library import namespace
from evoworld.testing import backends, check_against_reference, evaluate, on_device, under_simt
from evoworld.testing_attention import ATTENTION_CASES

BACKENDS = backends("sphere_attention")
FUSED = [b for b in BACKENDS if b[0] != "reference"]
on_every_backend = pytest.mark.parametrize(("backend", "device"), BACKENDS)
on_every_kernel = pytest.mark.parametrize(("backend", "device"), FUSED)
needs_native = pytest.mark.skipif(("cpu", "cpu") not in BACKENDS, reason="no native CPU library with this op")
needs_threads = pytest.mark.skipif(under_simt(), reason="csrc/simt has threads of its own")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
LEAVES = ("query", "key", "value", "zonal", "key_log_weight")


@pytest.mark.parametrize("name", ATTENTION_CASES)
@on_every_backend
def test_agrees_with_the_reference(backend, device, name):
    with evoworld.backend(backend):
        check_against_reference(sphere_attention, ATTENTION_CASES[name], device)


@on_every_kernel
@pytest.mark.parametrize("name", ["panorama", "bfloat16_64", "radius", "radius_masked_keys", "many_queries"])
def test_the_same_bits_each_time(backend, device, name):
    arguments = ATTENTION_CASES[name].build()
    with evoworld.backend(backend):
        expected = evaluate(sphere_attention, arguments, device=device)
        found = evaluate(sphere_attention, arguments, device=device)
    for key in expected:
        assert torch.equal(found[key], expected[key]), key


@needs_native
@needs_threads
@pytest.mark.parametrize("name", ["panorama", "many_keys", "many_queries", "bfloat16_64", "radius", "radius_wide"])
def test_the_same_bits_on_any_number_of_threads(name):
    arguments = ATTENTION_CASES[name].build()
    torch.set_num_threads(1)
    expected = evaluate(sphere_attention, arguments)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        found = evaluate(sphere_attention, arguments)
        for key in expected:
            assert torch.equal(found[key], expected[key]), (threads, key)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


POISONED = ["small", "width_17_16", "width_16_41", "bfloat16_40", "degree_3", "radius", "radius_half_projection"]
POISONED += ["no_queries", "no_keys", "no_batch", "all_keys_masked", "radius_leaves_all_alone", "no_bias", "strided"]


@on_every_kernel
@pytest.mark.parametrize("name", POISONED)
def test_poisoned_memory(backend, device, name, monkeypatch, deterministic):
    """torch fills what is allocated uninitialised with NaN in this mode: all of it must be written."""
    arguments = ATTENTION_CASES[name].build()
    with evoworld.backend(backend):
        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
        expected = evaluate(sphere_attention, arguments, device=device)
        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
        for key, found in evaluate(sphere_attention, arguments, device=device).items():
            assert torch.equal(found, expected[key]), key


@on_every_backend
@pytest.mark.parametrize("name", ["small", "radius"])
@pytest.mark.parametrize("wanted", LEAVES)
def test_one_gradient_alone_is_the_same(backend, device, wanted, name):
    arguments = on_device(ATTENTION_CASES[name].build(), device)
    with evoworld.backend(backend):
        together = evaluate(sphere_attention, arguments, device=device)[f"d_{wanted}"]
        alone = evaluate(
            lambda **leaf: sphere_attention(**{**arguments, **leaf}), {wanted: arguments[wanted]}, device=device
        )
    assert alone.keys() == {"0", "1", f"d_{wanted}"}
    torch.testing.assert_close(alone[f"d_{wanted}"], together)


@on_every_backend
def test_directions_get_no_gradient(backend, device):
    arguments = on_device(ATTENTION_CASES["radius"].build(), device)
    for name in ("query", "query_directions", "key_directions"):
        arguments[name].requires_grad_()
    with evoworld.backend(backend):
        sum(x.sum() for x in sphere_attention(**arguments)).backward()
    assert arguments["query"].grad.abs().max() > 0
    assert arguments["query_directions"].grad is None and arguments["key_directions"].grad is None


@on_every_backend
def test_output_alone_and_with_lse(backend, device):
    """A loss may be made of the output, of the lse, or of both; the lse alone sends no gradient to value."""
    arguments = {**ATTENTION_CASES["small"].build(), "return_lse": False}
    leaves = {k: x.to(device).requires_grad_() for k, x in arguments.items() if k in LEAVES}
    rest = {k: x for k, x in on_device(arguments, device).items() if k not in LEAVES}
    with evoworld.backend(backend):
        output = sphere_attention(**leaves, **rest)
        both, lse = sphere_attention(**leaves, **{**rest, "return_lse": True})
        by_output = torch.autograd.grad((output * output.detach()).sum(), list(leaves.values()))
        by_both = torch.autograd.grad((both * both.detach()).sum() + 0 * lse.sum(), list(leaves.values()))
        _, lse = sphere_attention(**leaves, **{**rest, "return_lse": True})
        by_lse = torch.autograd.grad(lse.sum(), list(leaves.values()), allow_unused=True)
    assert isinstance(output, torch.Tensor) and torch.equal(output, both)
    assert lse.shape == both.shape[:3] and lse.dtype == torch.float32
    for x, y in zip(by_output, by_both, strict=True):
        torch.testing.assert_close(x, y)
    by_lse = dict(zip(LEAVES, by_lse, strict=True))
    assert by_lse["value"] is None or (by_lse["value"] == 0).all()
    batch, heads, queries, _ = both.shape
    torch.testing.assert_close(by_lse["zonal"][:, 0], torch.full((heads,), float(batch * queries), device=device))
    total = by_lse["key_log_weight"].sum()
    torch.testing.assert_close(total, torch.full_like(total, batch * heads * queries))


def raw(name, device):
    """The arguments of the op below the public function."""
    case = on_device(ATTENTION_CASES[name].build(), device)
    width, radius, scale = case["query"].shape[-1], case["radius"], case["scale"]
    orders = [None if radius is None else compact_order(case[f"{which}_directions"]) for which in ("query", "key")]
    tensors = [case[key] for key in ("query", "key", "value", "query_directions", "key_directions")]
    return [*tensors, case["zonal"], case["key_log_weight"], *orders, radius, width**-0.5 if scale is None else scale]


@on_every_kernel
@pytest.mark.parametrize(
    "name", ["small", "no_bias", "half_16", "projection", "radius", "no_queries", "no_keys", "no_batch"]
)
def test_opcheck(backend, device, name):
    arguments, ops = raw(name, device), namespace(backend)
    leaves = [
        x.clone().requires_grad_() if i in (0, 1, 2, 5, 6) and x is not None else x for i, x in enumerate(arguments)
    ]
    torch.library.opcheck(ops.sphere_attention.default, tuple(leaves))
    output, lse = ops.sphere_attention(*arguments)
    upstream = torch.randn_like(output), torch.randn_like(lse)
    zonal, log_weight = (arguments[i] is not None for i in (5, 6))
    for wanted in ((True, True, True, True), (True, False, False, False), (False, True, True, False), (False,) * 4):
        wanted = (*wanted[:2], wanted[2] and zonal, wanted[3] and log_weight)
        torch.library.opcheck(ops.sphere_attention_backward.default, (*upstream, output, lse, *arguments, *wanted))


@on_every_kernel
def test_heads_merge_without_a_copy(backend, device):
    """[B, N, L, D] results lie in memory as [B, L, N, D], as the projection after them reads them."""
    arguments = on_device(ATTENTION_CASES["projection"].build(), device)
    leaves = [arguments[name].requires_grad_() for name in ("query", "key", "value")]
    with evoworld.backend(backend):
        output, lse = sphere_attention(**arguments)
        gradients = torch.autograd.grad((output, lse), leaves, (torch.randn_like(output), torch.randn_like(lse)))
    for x in (output, *gradients):
        assert x.transpose(1, 2).is_contiguous() and x.shape[1] == 3


@on_every_backend
@pytest.mark.parametrize("radius", [None, 0.8])
def test_compiles_to_one_graph(backend, device, radius):
    def layer(arguments):
        output, lse = sphere_attention(**arguments)
        return (output * 2).sin(), lse + 1

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with evoworld.backend(backend):
        for name in ("small", "projection", "degree_3"):  # other batches, heads and degrees
            arguments = {**ATTENTION_CASES[name].build(), "radius": radius}
            expected = evaluate(lambda **a: layer(a), arguments, device=device)
            for key, found in evaluate(lambda **a: compiled(a), arguments, device=device).items():
                torch.testing.assert_close(found, expected[key], msg=lambda m, key=key: f"{key}: {m}")


@on_every_backend
def test_compiles_with_numbers_that_vary(backend, device):
    """The second value of a number makes torch.compile treat it as a variable."""
    torch._dynamo.reset()
    compiled = torch.compile(sphere_attention, fullgraph=True, backend="aot_eager")
    arguments = on_device(ATTENTION_CASES["small"].build(), device)
    with evoworld.backend(backend), torch.no_grad():
        for radius, scale in ((0.5, 0.2), (0.7, 0.3), (1.1, 0.4)):
            varied = {**arguments, "radius": radius, "scale": scale}
            torch.testing.assert_close(compiled(**varied), sphere_attention(**varied))


@on_every_kernel
def test_gradients_of_gradients_are_an_error(backend, device):
    arguments = on_device(ATTENTION_CASES["small"].build(), device)
    query = arguments["query"].requires_grad_()
    with evoworld.backend(backend):
        output, _ = sphere_attention(**arguments)
        (gradient,) = torch.autograd.grad(output.square().sum(), query, create_graph=True)
        with pytest.raises(RuntimeError, match="sphere_attention: no gradients of gradients; backend 'reference' has"):
            gradient.square().sum().backward()


@on_every_backend
@pytest.mark.parametrize("name", ["query", "key", "value", "zonal"])
def test_nan_is_not_hidden(backend, device, name):
    arguments = on_device(ATTENTION_CASES["small"].build(), device)
    arguments[name].view(-1)[-1] = torch.nan
    with evoworld.backend(backend), torch.no_grad():
        output, lse = sphere_attention(**arguments)
    assert output.isnan().any() and (name == "value" or lse.isnan().any())


@on_every_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_is_that_of_torchs_own_attention(backend, device, dtype):
    """Query, key and value in autocast's dtype, whatever they were; geometry, bias and lse stay in float32."""
    arguments = on_device(ATTENTION_CASES["concentrated"].build(), device)
    tokens = arguments["query"].shape[-1]
    layer = torch.nn.Linear(tokens, tokens, device=device)
    zonal = arguments["zonal"].requires_grad_()
    with torch.autocast(device, dtype=dtype), evoworld.backend(backend):
        query = layer(arguments["query"])
        output, lse = sphere_attention(**{**arguments, "query": query})  # key and value are float32
        like = torch.nn.functional.scaled_dot_product_attention(query, arguments["key"], arguments["value"])
        (output.float().square().sum() + lse.sum()).backward()
    assert query.dtype == output.dtype == like.dtype == dtype and lse.dtype == torch.float32
    rounded = {name: arguments[name].to(dtype) for name in ("key", "value")}
    with torch.autocast(device, dtype=dtype):
        rounded["query"] = layer(arguments["query"]).detach()
    with evoworld.backend("reference"):
        expected, expected_lse = sphere_attention(**{**arguments, **rounded})
    torch.testing.assert_close(output, expected, rtol=0, atol=8 * torch.finfo(dtype).eps)
    torch.testing.assert_close(lse, expected_lse, rtol=0, atol=1e-3)
    assert layer.weight.grad.abs().max() > 0 and layer.weight.grad.isfinite().all()
    assert zonal.grad.dtype == torch.float32 and zonal.grad.abs().max() > 0


def test_float64_is_computed_in_float64():
    arguments = ATTENTION_CASES["radius"].build()
    wide = {k: x.double() if isinstance(x, torch.Tensor) else x for k, x in arguments.items()}
    output, lse = sphere_attention(**wide)
    assert output.dtype == lse.dtype == torch.float64
    difference = (output - sphere_attention(**arguments)[0].double()).abs().max()
    assert 1e-9 < difference < 1e-5


@on_every_backend
def test_strengths_and_weights_of_half_precision_are_widened(backend, device):
    """As a model that was converted as a whole keeps them; their gradients are in their dtype."""
    arguments = on_device(ATTENTION_CASES["bfloat16_16"].build(), device)
    for name in ("zonal", "key_log_weight"):
        arguments[name] = arguments[name].bfloat16()
    wide = {**arguments, **{name: arguments[name].float() for name in ("zonal", "key_log_weight")}}
    with evoworld.backend(backend):
        found, expected = (evaluate(sphere_attention, x, device=device) for x in (arguments, wide))
    assert found["d_zonal"].dtype == found["d_key_log_weight"].dtype == torch.bfloat16
    for name in found:
        torch.testing.assert_close(found[name], expected[name].to(found[name].dtype))


@needs_cuda
@pytest.mark.parametrize("name", ["bfloat16_64", "radius_bfloat16"])
def test_cuda_graphs_capture_forward_and_backward(name):
    """Nothing waits for the GPU and all memory is the graph's: replayed on other numbers it has their results."""
    arguments = on_device(ATTENTION_CASES[name].build(), "cuda")
    leaves = [arguments[key].requires_grad_() for key in LEAVES]

    def step():
        outputs = sphere_attention(**arguments)
        return *outputs, *torch.autograd.grad(outputs, leaves, [torch.ones_like(x) for x in outputs])

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for leaf in leaves:
            leaf.copy_(leaf.flip(0, -1) if leaf.ndim > 1 else leaf.flip(0))
    graph.replay()
    for found, expected in zip(captured, step(), strict=True):
        torch.testing.assert_close(found, expected)
