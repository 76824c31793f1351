"""What can be said of GPUs without one: which backend is chosen, what is refused, which rules the Triton ops have.

Fake tensors stand for tensors on a GPU, and the availability of backends is pretended; nothing is computed.
"""

import copy
import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import evoworld
from evoworld import _native
from evoworld.ops import available, select, sphere_attention, volume_render, voxel_scatter, voxel_scatter_
from evoworld.ops.library import grid_arguments
from evoworld.testing import RENDER_CASES, SCATTER_CASES, backends
from evoworld.testing_attention import ATTENTION_CASES

CUDA = torch.device("cuda", 0)
WITHOUT_KERNEL = {("sphere_attention", "cuda"): "no kernel"}
BACKEND_MODULE = sys.modules["evoworld.ops.backend"]
needs_native = pytest.mark.skipif(("cpu", "cpu") not in backends("volume_render"), reason="no native CPU library")
needs_native_attention = pytest.mark.skipif(
    ("cpu", "cpu") not in backends("sphere_attention"), reason="no native CPU library with this op"
)
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture
def machine(monkeypatch):
    """machine(cuda=None, triton="...", ...) pretends what is missing; what is not named is missing too."""

    def pretend(not_built_for=None, interprets=False, **missing):
        reasons = {"reference": None, "cpu": "no cpu", "cuda": "no cuda", "triton": "no triton", **missing}
        monkeypatch.setattr(BACKEND_MODULE, "_missing_triton", lambda interprets: reasons["triton"])
        monkeypatch.setattr(_native, "missing", reasons.get)
        monkeypatch.setattr(BACKEND_MODULE, "_missing_kernel", lambda *which: WITHOUT_KERNEL.get(which))
        monkeypatch.setattr(BACKEND_MODULE, "triton_interprets", lambda: interprets)
        monkeypatch.setattr(_native, "not_built_for", lambda index: not_built_for)

    return pretend


def on(device, arguments):
    """The arguments as fake tensors on a device."""
    fake = {k: _fake(v, device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    if "grid" in arguments:
        grid = fake["grid"] = copy.copy(arguments["grid"])
        grid.directory, grid.pages = _fake(grid.directory, device), _fake(grid.pages, device)
    return fake


FIXED = ("jitter", "query_directions", "key_directions")  # without a gradient


def _fake(tensor, device):
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


CALLS = [
    (voxel_scatter, SCATTER_CASES["channels_3"].build()),
    (volume_render, RENDER_CASES["jitter"].build()),
    (sphere_attention, ATTENTION_CASES["radius"].build()),
]
for_all_ops = pytest.mark.parametrize(("op", "arguments"), CALLS, ids=[op.__name__ for op, _ in CALLS])


def test_automatic_choice_on_a_gpu(machine):
    machine(cpu=None, cuda=None, triton=None)
    assert select("voxel_scatter", CUDA, torch.float32) == "cuda"
    assert select("voxel_scatter", CUDA, torch.float64) == "reference"
    assert select("voxel_scatter", torch.device("cpu"), torch.float32) == "cpu"
    assert select("voxel_scatter", torch.device("meta"), torch.float32) == "reference"
    machine(cpu=None, triton=None)
    assert select("volume_render", CUDA, torch.float32) == "triton"
    machine(cpu=None, cuda=None, triton=None, not_built_for="built for others")
    assert select("volume_render", CUDA, torch.float32) == "triton"
    machine(cpu=None)
    assert select("volume_render", CUDA, torch.float32) == "reference"


def test_attention_on_a_gpu_is_tritons(machine):
    machine(cpu=None, cuda=None, triton=None)
    assert select("sphere_attention", CUDA, torch.float32) == "triton"
    assert select("sphere_attention", torch.device("cpu"), torch.float32) == "cpu"
    assert select("sphere_attention", CUDA, torch.float64) == "reference"
    assert available("sphere_attention")["cuda"] == "no kernel"
    with evoworld.backend("cuda"), pytest.raises(RuntimeError, match="sphere_attention: backend 'cuda' was requested"):
        select("sphere_attention", CUDA, torch.float32)
    machine(cpu=None, cuda=None)
    assert select("sphere_attention", CUDA, torch.float32) == "reference"


def test_a_library_without_an_op_says_so():
    """What the dispatcher knows, not what a list says; the CUDA library is loaded where there is a GPU only."""
    for op in ("voxel_scatter", "volume_render", "sphere_attention"):
        for name in ("cpu", "cuda"):
            has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"evoworld::{op}", name.upper())
            missing = BACKEND_MODULE._missing_kernel(op, name)
            assert (missing is None) == has_kernel
            assert has_kernel or f"libevoworld_{name} has no kernel of this op" in missing


def test_the_interpreter_serves_requests_only(machine):
    cpu = torch.device("cpu")
    machine(cpu=None, triton=None, interprets=True)
    assert select("volume_render", cpu, torch.float32) == "cpu"
    assert select("volume_render", CUDA, torch.float32) == "reference"
    with evoworld.backend("triton"):
        assert select("volume_render", cpu, torch.float32) == select("volume_render", CUDA, torch.float32) == "triton"
    machine(cpu=None, triton=None)
    with evoworld.backend("triton"), pytest.raises(RuntimeError, match="tensors are on cpu; move them to a CUDA dev"):
        select("volume_render", cpu, torch.float32)


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_requests_that_a_gpu_cannot_serve(machine, name):
    machine(cpu=None, cuda=None, triton=None, not_built_for="built for 8.0, this card has 7.0")
    with evoworld.backend(name):
        with pytest.raises(RuntimeError, match=f"'{name}' was requested .*the tensors are on cpu; move them to a CUDA"):
            select("voxel_scatter", torch.device("cpu"), torch.float32)
        with pytest.raises(RuntimeError, match=r"it computes in float32, got torch\.float64"):
            select("voxel_scatter", CUDA, torch.float64)
    with evoworld.backend("cpu"), pytest.raises(RuntimeError, match="the tensors are on cuda:0; move them to the CPU"):
        select("voxel_scatter", CUDA, torch.float32)
    if name == "cuda":
        with evoworld.backend(name), pytest.raises(RuntimeError, match=r"built for 8\.0, this card has 7\.0"):
            select("voxel_scatter", CUDA, torch.float32)
        machine(cpu=None, cuda=None)
        with evoworld.backend(name):
            assert select("voxel_scatter", CUDA, torch.float32) == "cuda"


@for_all_ops
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_ops_on_a_gpu_give_tensors_there(machine, op, arguments, backend):
    machine(cpu=None, cuda=None, triton=None)
    if (op.__name__, backend) in WITHOUT_KERNEL:
        pytest.skip("it has no such kernel")
    with FakeTensorMode(), evoworld.backend(backend):
        outputs = op(**on(CUDA, arguments))
    with evoworld.backend("reference"):
        expected = op(**arguments)
    assert [(x.shape, x.dtype) for x in outputs] == [(x.shape, x.dtype) for x in expected]
    assert all(x.device == CUDA for x in outputs)


@for_all_ops
@pytest.mark.parametrize("backend", ["cuda", "triton", None])
def test_tensors_on_different_devices_are_refused(machine, op, arguments, backend):
    machine(cpu=None, cuda=None, triton=None)
    first = next(iter(arguments))  # whose device the others must share
    with FakeTensorMode():
        here, there, elsewhere = (on(device, arguments) for device in (CUDA, "cpu", "cuda:1"))
        for name, value in here.items():
            if name == "grid" or (isinstance(value, torch.Tensor) and name != first):
                for others, where in ((there, "cpu"), (elsewhere, "cuda:1")):
                    message = f"{op.__name__}: {name}: expected device cuda:0, got {where}"
                    with pytest.raises(ValueError, match=message):
                        if backend is None:
                            op(**{**here, name: others[name]})
                        else:
                            with evoworld.backend(backend):
                                op(**{**here, name: others[name]})


@needs_native
def test_the_native_ops_refuse_tensors_of_another_device():
    """Below the public ops, whose checks come first; the dispatcher would send a mixture to either kernel."""
    cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    (_, scatter), (_, render), _ = CALLS

    def call(op, arguments, name):
        arguments = [x.to("meta") if key == name else x for key, x in arguments.items()]
        return op.default.redispatch(cpu, *arguments)

    ops, grid_names = torch.ops.evoworld, ("directory", "pages", "page_origin", "grid_origin", "voxel_size")
    for op, given, names, rest in (
        (ops.voxel_scatter, scatter, ("features", "depth", "origins", "directions", "weight"), (64, False)),
        (ops.volume_render, render, ("features", "density", "origins", "directions", "jitter"), ()),
    ):
        arguments = {name: given[name] for name in names}
        arguments.update(zip(grid_names, grid_arguments(given["grid"]), strict=True))
        if op is ops.volume_render:
            arguments.update({name: given[name] for name in ("near", "far", "step", "min_transmittance")})
        arguments.update({"image_width": 0, **dict(enumerate(rest))})
        if op is ops.voxel_scatter:
            arguments[0] = given["grid"].num_voxels
        assert call(op, arguments, None)[0].device.type == "cpu"
        for name in (*names, "directory", "pages"):
            with pytest.raises(RuntimeError, match=f"{name}: expected a tensor on the CPU"):
                call(op, arguments, name)


@needs_native_attention
def test_the_native_attention_refuses_tensors_of_another_device():
    cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    given = CALLS[2][1]
    names = ("query", "key", "value", "query_directions", "key_directions", "zonal", "key_log_weight")
    orders = {f"{name}_order": torch.arange(len(given[f"{name}_directions"])).int() for name in ("query", "key")}
    arguments = {**{name: given[name] for name in names}, **orders, "radius": given["radius"], "scale": 0.25}
    forward, backward = (
        torch.ops.evoworld.sphere_attention.default,
        torch.ops.evoworld.sphere_attention_backward.default,
    )
    output, lse = forward.redispatch(cpu, *arguments.values())
    upstream = {"d_output": torch.ones_like(output), "d_lse": torch.ones_like(lse), "output": output, "lse": lse}
    wants = dict(enumerate([True] * 4))
    for op, named in ((forward, arguments), (backward, {**upstream, **arguments, **wants})):
        assert op.redispatch(cpu, *named.values())[0].device.type == "cpu"
        for name in named:
            if isinstance(named[name], torch.Tensor):
                moved = {**named, name: named[name].to("meta")}
                with pytest.raises(RuntimeError, match=f"{name}: expected a tensor on the CPU"):
                    op.redispatch(cpu, *moved.values())


def test_both_namespaces_have_the_same_schemas():
    for name in (
        "voxel_scatter",
        "voxel_scatter_",
        "voxel_scatter_backward",
        "volume_render",
        "volume_render_backward",
        "sphere_attention",
        "sphere_attention_backward",
    ):
        schemas = [str(getattr(ops, name).default._schema) for ops in (torch.ops.evoworld, torch.ops.evoworld_triton)]
        assert schemas[0].partition("(")[1:] == schemas[1].partition("(")[1:]


@needs_triton
@for_all_ops
def test_the_triton_ops_have_the_autograd_rules(machine, op, arguments):
    """Their backward is their own, not the native one."""
    machine(triton=None, interprets=True)
    ran = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            ran.append(str(function))
            return function(*args, **(kwargs or {}))

    with FakeTensorMode(), evoworld.backend("triton"), Record():
        fake = on("cpu", arguments)
        leaves = [x.requires_grad_() for k, x in fake.items() if isinstance(x, torch.Tensor) and k not in FIXED]
        gradients = torch.autograd.grad(sum(x.sum() for x in op(**fake)), leaves)
    assert [x.shape for x in gradients] == [x.shape for x in leaves]
    assert f"evoworld_triton.{op.__name__}_backward.default" in ran
    assert not [name for name in ran if name.startswith("evoworld.") and name != "evoworld.compact_order.default"]


@pytest.fixture
def restore_determinism():
    yield
    torch.use_deterministic_algorithms(False)


def test_scatter_by_triton_is_not_deterministic(machine, restore_determinism):
    machine(triton=None, interprets=True)
    with FakeTensorMode(), evoworld.backend("triton"):
        arguments = on("cpu", CALLS[0][1])
        voxels = arguments["grid"].num_voxels
        sums = torch.zeros(voxels, 3), torch.zeros(voxels)
        torch.use_deterministic_algorithms(True)
        with pytest.raises(RuntimeError, match="voxel_scatter .*does not have a deterministic implementation"):
            voxel_scatter(**arguments)
        with pytest.raises(RuntimeError, match="voxel_scatter_ .*does not have a deterministic implementation"):
            voxel_scatter_(*sums, **arguments)
        torch.use_deterministic_algorithms(True, warn_only=True)
        with pytest.warns(UserWarning, match="voxel_scatter .*does not have a deterministic implementation"):
            voxel_scatter(**arguments)


def test_gradients_of_rows_by_triton_are_not_deterministic(machine, restore_determinism):
    machine(triton=None, interprets=True)
    message = "volume_render_backward .*does not have a deterministic implementation"
    with FakeTensorMode(), evoworld.backend("triton"):
        arguments = on("cpu", CALLS[1][1])
        arguments["origins"].requires_grad_()
        torch.use_deterministic_algorithms(True)
        volume_render(**arguments)[0].sum().backward()  # of the rays alone: each is one thread's
        arguments["density"].requires_grad_()
        outputs = volume_render(**arguments)
        with pytest.raises(RuntimeError, match=message):
            outputs[0].sum().backward()
        torch.use_deterministic_algorithms(True, warn_only=True)
        outputs = volume_render(**arguments)
        with pytest.warns(UserWarning, match=message):
            outputs[0].sum().backward()


INTERPRETED = """
import sys, torch, evoworld
from evoworld.geometry import SparseGrid
from evoworld.ops import available, select
from evoworld.testing import backends
assert "triton" not in sys.modules
assert available("voxel_scatter")["triton"] is None
assert ("triton", "cpu") in backends("voxel_scatter")
assert select("voxel_scatter", torch.device("cpu"), torch.float32) != "triton"
points = torch.rand(50, 3)
with evoworld.backend("triton"):
    assert select("voxel_scatter", torch.device("cpu"), torch.float32) == "triton"
    grid = SparseGrid.from_points(points, 0.1)
with evoworld.backend("reference"):
    assert torch.equal(grid.pages, SparseGrid.from_points(points, 0.1).pages)
assert "triton" not in sys.modules
"""


@needs_triton
def test_interpreted_triton_is_a_backend_for_the_cpu():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    environment.pop("EVOWORLD_BACKEND", None)
    subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, check=True)


def test_unknown_op():
    with pytest.raises(
        ValueError, match="op: expected one of voxel_scatter, volume_render, sphere_attention, sparse_grid, got 'blur'"
    ):
        available("blur")
