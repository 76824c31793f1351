"""voxel_scatter: every backend against the reference, and what torch expects of an op."""

import os
import subprocess
import sys

import pytest
import torch

import evoworld
from evoworld.geometry import SparseGrid
from evoworld.ops import voxel_scatter, voxel_scatter_
from evoworld.ops.library import grid_arguments, namespace
from evoworld.testing import SCATTER_CASES, backends, check_against_reference, evaluate, on_device, under_simt

BACKENDS = backends("voxel_scatter")
FUSED = [b for b in BACKENDS if b[0] != "reference"]
needs_native = pytest.mark.skipif(("cpu", "cpu") not in BACKENDS, reason="no native CPU library")
needs_threads = pytest.mark.skipif(under_simt(), reason="csrc/simt has threads of its own")


@pytest.mark.parametrize("name", SCATTER_CASES)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_agrees_with_the_reference(backend, device, name):
    with evoworld.backend(backend):
        check_against_reference(voxel_scatter, SCATTER_CASES[name], device)


def crowd(rays=20000, channels=5):
    """More rays than one thread's share, many of them into the same few voxels."""
    draw = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(rays, 3, generator=draw), dim=-1)
    directions[: rays // 2, :2] *= 0.01
    depth = 1 + torch.rand(rays, generator=draw)
    origins = torch.zeros(rays, 3)
    return {
        "features": torch.randn(rays, channels, generator=draw),
        "depth": depth,
        "origins": origins,
        "directions": directions,
        "grid": SparseGrid.from_points(depth[:, None] * directions, 0.05),
        "weight": torch.rand(rays, generator=draw),
    }


@needs_native
@needs_threads
def test_has_the_same_bits_for_any_number_of_threads():
    arguments = crowd()
    results = []
    for threads in (1, 2, 5, 2):
        torch.set_num_threads(threads)
        results.append(evaluate(voxel_scatter, arguments))
        sums = torch.ones(arguments["grid"].num_voxels, 5), torch.ones(arguments["grid"].num_voxels)
        voxel_scatter_(*sums, **arguments)
        results[-1].update(in_place_features=sums[0], in_place_weight=sums[1])
    for other in results[1:]:
        for name, expected in results[0].items():
            assert torch.equal(other[name], expected), name


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@needs_native
def test_poisoned_memory(monkeypatch, deterministic):
    """torch fills what is allocated uninitialised with NaN in this mode: all of it must be written."""
    for name in ("channels_17", "invalid_depth", "patch", "no_rays", "half_3", "image_of_odd_width"):
        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
        expected = evaluate(voxel_scatter, SCATTER_CASES[name].build())
        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
        found = evaluate(voxel_scatter, SCATTER_CASES[name].build())
        for key in expected:
            assert torch.equal(found[key], expected[key]), (name, key)


@pytest.mark.parametrize(("backend", "device"), [b for b in BACKENDS if b[0] in ("cpu", "cuda")])
@pytest.mark.parametrize("image_width", [0, 40])
def test_deterministic_mode_has_the_same_bits_each_time(backend, device, image_width, deterministic):
    arguments = on_device(crowd(rays=4001), device)
    voxels = arguments["grid"].num_voxels
    results = []
    for _ in range(2):
        sums = torch.ones(voxels, 5, device=device), torch.ones(voxels, device=device)
        with evoworld.backend(backend):
            voxel_scatter_(*sums, **arguments, image_width=image_width)
            results.append((*sums, *voxel_scatter(**arguments, image_width=image_width)))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
    with evoworld.backend("reference"):
        expected = voxel_scatter(**arguments)
    for found, wanted in zip(results[0][2:], expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


HASHES = """
import hashlib, torch
from evoworld.geometry import SparseGrid
from evoworld.ops import voxel_scatter
draw = torch.Generator().manual_seed(0)
rays = torch.zeros(300, 3), torch.nn.functional.normalize(torch.randn(300, 3, generator=draw), dim=-1)
depth, features = 1 + torch.rand(300, generator=draw), torch.randn(300, 5, generator=draw)
grid = SparseGrid.from_points(depth[:, None] * rays[1], 0.4)
for deterministic in (False, True):
    torch.use_deterministic_algorithms(deterministic)
    found = voxel_scatter(features, depth, *rays, grid)
    print(hashlib.sha256(b"".join(x.numpy().tobytes() for x in found)).hexdigest())
"""


@pytest.mark.skipif(not under_simt(), reason="only csrc/simt runs threads in an order that a seed chooses")
def test_deterministic_mode_has_the_same_bits_in_any_order_of_threads():
    hashes = []
    for seed in "1", "2":
        environment = {**os.environ, "EVOWORLD_SIMT_SEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", HASHES], env=environment, capture_output=True, text=True, check=True
        )
        hashes.append(done.stdout.split())
    plain, deterministic = map(set, zip(*hashes, strict=True))
    assert len(deterministic) == 1
    assert len(plain) > 1, "the order of threads never changed: this test cannot tell"


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_sums_may_begin_anywhere_in_memory(backend, device):
    """A view of rows is contiguous, and its first element is not on a border of 16 bytes."""
    arguments = SCATTER_CASES["channels_8"].build()
    arguments = on_device(arguments, device)
    voxels = arguments["grid"].num_voxels
    memory = torch.zeros(2, voxels * 8 + 3, device=device), torch.zeros(2, voxels + 3, device=device)
    with evoworld.backend(backend):
        expected = voxel_scatter(**arguments)
        for skip in (1, 2, 3):
            sums = memory[0][0, skip:][: voxels * 8].view(voxels, 8), memory[1][0, skip:][:voxels]
            for total in sums:
                total.zero_()
            voxel_scatter_(*sums, **arguments)
            for total, wanted in zip(sums, expected, strict=True):
                torch.testing.assert_close(total, wanted)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_gradients_of_sums_may_begin_anywhere_in_memory(backend, device):
    arguments = on_device(SCATTER_CASES["channels_8"].build(), device)
    voxels = arguments["grid"].num_voxels
    leaves = {k: v.requires_grad_() for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    upstream = torch.randn(voxels * 9 + 3, device=device)
    with evoworld.backend(backend):
        sums = voxel_scatter(**arguments)
        for skip in (0, 1, 2, 3):
            d_sums = upstream[skip:][: voxels * 8].view(voxels, 8), upstream[skip:][:voxels]
            assert all(x.is_contiguous() for x in d_sums)
            found = torch.autograd.grad(sums, list(leaves.values()), d_sums, retain_graph=True)
            aligned = [x.clone() for x in d_sums]
            expected = torch.autograd.grad(sums, list(leaves.values()), aligned, retain_graph=True)
            for name, x, y in zip(leaves, found, expected, strict=True):
                torch.testing.assert_close(x, y, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_in_place_adds_to_what_is_there(backend, device):
    arguments = SCATTER_CASES["channels_4"].build()
    arguments = on_device(arguments, device)
    arguments["features"].requires_grad_()
    voxels = arguments["grid"].num_voxels
    before = torch.randn(voxels, 4, device=device), torch.randn(voxels, device=device)
    sums = before[0].clone(), before[1].clone()
    with evoworld.backend(backend):
        assert voxel_scatter_(*sums, **arguments) is None
        added = voxel_scatter(**arguments)
    for total, old, new in zip(sums, before, added, strict=True):
        torch.testing.assert_close(total, old + new.detach())
        assert not total.requires_grad


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("wanted", ["features", "depth", "origins", "directions", "weight"])
def test_one_gradient_alone_is_the_same(backend, device, wanted):
    arguments = SCATTER_CASES["channels_3"].build()
    arguments = on_device(arguments, device)
    with evoworld.backend(backend):
        together = evaluate(voxel_scatter, arguments, device=device)[f"d_{wanted}"]
        alone = evaluate(
            lambda **leaf: voxel_scatter(**{**arguments, **leaf}), {wanted: arguments[wanted]}, device=device
        )
    torch.testing.assert_close(alone[f"d_{wanted}"], together)


def test_strides_do_not_matter():
    arguments = SCATTER_CASES["channels_3"].build()
    expected = voxel_scatter(**arguments)
    strided = dict(arguments)
    strided["features"] = arguments["features"].T.contiguous().T
    strided["directions"] = torch.stack([arguments["directions"]] * 2, dim=-1)[..., 0]
    strided["origins"] = arguments["origins"][:1].expand_as(arguments["origins"])  # one eye: all rows are equal
    strided["depth"] = torch.stack([arguments["depth"]] * 2, dim=-1)[:, 1]
    assert torch.equal(arguments["origins"], strided["origins"])
    assert not any(strided[name].is_contiguous() for name in ("features", "directions", "origins", "depth"))
    for found, wanted in zip(voxel_scatter(**strided), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def raw(name, device):
    """The arguments of the op below the public function."""
    case = on_device(SCATTER_CASES[name].build(), device)
    tensors = [case[key] for key in ("features", "depth", "origins", "directions", "weight")]
    return tensors, (*grid_arguments(case["grid"]), case["image_width"]), case["grid"].num_voxels


@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize("name", ["channels_3", "half_3", "no_weight", "empty_grid", "no_rays"])
def test_opcheck(backend, device, name):
    tensors, grid, voxels = raw(name, device)
    leaves = [None if x is None else x.clone().requires_grad_() for x in tensors]
    ops, channels, deterministic = namespace(backend), tensors[0].shape[1], backend != "triton"
    torch.library.opcheck(ops.voxel_scatter.default, (*leaves, *grid, voxels, deterministic))
    sums = torch.zeros(voxels, channels, device=device), torch.zeros(voxels, device=device)
    torch.library.opcheck(ops.voxel_scatter_.default, (*sums, *tensors, *grid, deterministic))
    for wanted in ((True, True, tensors[-1] is not None), (True, False, False), (False, True, False)):
        torch.library.opcheck(ops.voxel_scatter_backward.default, (*sums, *tensors, *grid, *wanted))


@pytest.mark.parametrize(("backend", "device"), FUSED)
def test_compiles_to_one_graph(backend, device):
    def shaded(arguments):
        feature_sum, weight_sum = voxel_scatter(**arguments)
        return (feature_sum * 2).sin(), weight_sum + 1

    torch._dynamo.reset()
    compiled = torch.compile(shaded, fullgraph=True, backend="aot_eager")
    with evoworld.backend(backend):
        for name in ("channels_3", "several_pages"):  # another number of rays, another grid
            arguments = SCATTER_CASES[name].build()
            expected = evaluate(lambda **a: shaded(a), arguments, device=device)
            for key, found in evaluate(lambda **a: compiled(a), arguments, device=device).items():
                torch.testing.assert_close(found, expected[key], msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_autocast_keeps_sums_and_rays_in_float32(backend, device):
    arguments = SCATTER_CASES["channels_8"].build()
    arguments = on_device(arguments, device)
    layer = torch.nn.Linear(8, 8, device=device)
    with torch.autocast(device, dtype=torch.bfloat16), evoworld.backend(backend):
        features = layer(arguments["features"])
        assert features.dtype == torch.bfloat16
        feature_sum, weight_sum = voxel_scatter(**{**arguments, "features": features})
        feature_sum.square().sum().backward()
    assert feature_sum.dtype == weight_sum.dtype == torch.float32
    expected = voxel_scatter(**{**arguments, "features": features.float()})
    torch.testing.assert_close(feature_sum, expected[0])
    assert layer.weight.grad.isfinite().all() and layer.weight.grad.abs().max() > 0


def test_float64_is_computed_in_float64():
    arguments = SCATTER_CASES["channels_3"].build()
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    feature_sum, _ = voxel_scatter(**wide)
    assert feature_sum.dtype == torch.float64
    assert (feature_sum - voxel_scatter(**arguments)[0].double()).abs().max() > 1e-9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(53)}, r"voxel_scatter: features: expected shape \[R, C\], got \[53\]"),
        ({"features": torch.zeros(53, 3).int()}, "voxel_scatter: features: expected float32 or .*got int32"),
        ({"features": [1.0]}, "voxel_scatter: features: expected a tensor, got list"),
        ({"depth": torch.zeros(52)}, r"voxel_scatter: depth: expected shape \[53\], got \[52\]"),
        ({"depth": torch.zeros(53).half()}, "voxel_scatter: depth: expected float32 or float64, got float16"),
        ({"depth": torch.zeros(53, device="meta")}, "voxel_scatter: depth: expected device cpu, got meta"),
        ({"origins": torch.zeros(53, 2)}, r"voxel_scatter: origins: expected shape \[53, 3\], got \[53, 2\]"),
        ({"origins": torch.zeros(1, 3)}, r"voxel_scatter: origins: expected shape \[53, 3\], got \[1, 3\]"),
        ({"directions": torch.zeros(53, 3).bfloat16()}, "voxel_scatter: directions: .*got bfloat16"),
        ({"weight": torch.zeros(53, 1)}, r"voxel_scatter: weight: expected shape \[53\], got \[53, 1\]"),
        ({"image_width": -1}, "voxel_scatter: image_width: expected an int >= 0, got -1"),
        ({"image_width": 8.0}, r"voxel_scatter: image_width: expected an int >= 0, got 8\.0"),
        ({"grid": None}, "voxel_scatter: grid: expected a SparseGrid, got NoneType"),
        ({"grid": SparseGrid(0.1, device="meta")}, "voxel_scatter: grid: expected device cpu, got meta"),
    ],
)
def test_bad_input(change, message):
    arguments = {**SCATTER_CASES["channels_3"].build(), **change}
    with pytest.raises(ValueError, match=message):
        voxel_scatter(**arguments)


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        (lambda v: (torch.zeros(v, 4), torch.zeros(v)), r"voxel_scatter_: feature_sum: expected shape \[\d+, 3\]"),
        (lambda v: (torch.zeros(v, 3), torch.zeros(v, 1)), r"voxel_scatter_: weight_sum: expected shape \[\d+\], got"),
        (lambda v: (torch.zeros(v, 3).half(), torch.zeros(v)), "voxel_scatter_: feature_sum: .*float32, got float16"),
        (lambda v: (torch.zeros(3, v).T, torch.zeros(v)), "voxel_scatter_: feature_sum: expected a contiguous tensor"),
    ],
)
def test_bad_sums(sums, message):
    arguments = SCATTER_CASES["channels_3"].build()
    with pytest.raises(ValueError, match=message):
        voxel_scatter_(*sums(arguments["grid"].num_voxels), **arguments)
