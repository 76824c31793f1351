"""Who serves an op: the context manager, then the environment, then the device; and no request falls back."""

import pytest
import torch

import evoworld
from evoworld.ops import available, select, volume_render, voxel_scatter
from evoworld.testing import RENDER_CASES, SCATTER_CASES

CPU = torch.device("cpu")
needs_native = pytest.mark.skipif(available("voxel_scatter")["cpu"] is not None, reason="no native CPU library")


@needs_native
def test_automatic_choice():
    assert select("voxel_scatter", CPU, torch.float32) == "cpu"
    assert select("voxel_scatter", CPU, torch.float64) == "reference"


@needs_native
def test_precedence(monkeypatch):
    monkeypatch.setenv("EVOWORLD_BACKEND", "reference")
    assert select("volume_render", CPU, torch.float32) == "reference"
    with evoworld.backend("cpu"):
        assert select("volume_render", CPU, torch.float32) == "cpu"
        with evoworld.backend("reference"):
            assert select("volume_render", CPU, torch.float32) == "reference"
        assert select("volume_render", CPU, torch.float32) == "cpu"
    assert select("volume_render", CPU, torch.float32) == "reference"
    monkeypatch.setenv("EVOWORLD_BACKEND", "")
    assert select("volume_render", CPU, torch.float32) == "cpu"


@needs_native
def test_a_request_ends_with_its_block_even_after_an_error():
    with pytest.raises(KeyError), evoworld.backend("reference"):
        raise KeyError
    assert select("voxel_scatter", CPU, torch.float32) == "cpu"


@needs_native
def test_a_request_decides_which_code_runs(monkeypatch):
    from evoworld import reference

    def not_here(*_):
        raise AssertionError("the reference ran")

    monkeypatch.setattr(reference, "voxel_scatter", not_here)
    monkeypatch.setattr(reference, "volume_render", not_here)
    for op, cases in ((voxel_scatter, SCATTER_CASES), (volume_render, RENDER_CASES)):
        op(**cases["channels_3"].build())
        with evoworld.backend("reference"), pytest.raises(AssertionError, match="the reference ran"):
            op(**cases["channels_3"].build())


@pytest.mark.parametrize("op", ["voxel_scatter", "volume_render"])
def test_a_request_that_cannot_be_served_says_what_is_missing(op, monkeypatch):
    call, cases = (voxel_scatter, SCATTER_CASES) if op == "voxel_scatter" else (volume_render, RENDER_CASES)
    arguments = cases["channels_3"].build()
    missing = {name: reason for name, reason in available(op).items() if reason is not None}
    if not missing:
        pytest.skip("every backend is there: this machine cannot tell")
    for name, reason in missing.items():
        with evoworld.backend(name), pytest.raises(RuntimeError) as raised:
            call(**arguments)
        assert str(raised.value) == f"{op}: backend '{name}' was requested and cannot serve it: {reason}"
        monkeypatch.setenv("EVOWORLD_BACKEND", name)
        with pytest.raises(RuntimeError, match=f"backend '{name}' was requested"):
            call(**arguments)


@needs_native
def test_the_cpu_kernels_are_not_replaced_for_float64():
    arguments = SCATTER_CASES["channels_3"].build()
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    with evoworld.backend("cpu"), pytest.raises(RuntimeError, match=r"float32, got torch\.float64"):
        voxel_scatter(**wide)


def test_unknown_names(monkeypatch):
    message = "expected one of reference, cpu, cuda, triton, got 'gpu'"
    with pytest.raises(ValueError, match=f"^backend: {message}"), evoworld.backend("gpu"):
        pass
    monkeypatch.setenv("EVOWORLD_BACKEND", "gpu")
    with pytest.raises(ValueError, match=f"^EVOWORLD_BACKEND: {message}"):
        voxel_scatter(**SCATTER_CASES["channels_3"].build())


def test_every_op_says_who_can_serve_it():
    for op in ("voxel_scatter", "volume_render", "sparse_grid"):
        assert list(available(op)) == ["reference", "cpu", "cuda", "triton"]
        assert available(op)["reference"] is None
