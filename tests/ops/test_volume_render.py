"""volume_render: every backend against the reference, and what torch expects of an op."""

import pytest
import torch

import evoworld
from evoworld.geometry import SparseGrid
from evoworld.ops import volume_render
from evoworld.ops.library import grid_arguments, namespace
from evoworld.testing import RENDER_CASES, backends, check_against_reference, evaluate, on_device, under_simt

BACKENDS = backends("volume_render")
FUSED = [b for b in BACKENDS if b[0] != "reference"]
needs_native = pytest.mark.skipif(("cpu", "cpu") not in BACKENDS, reason="no native CPU library")
needs_threads = pytest.mark.skipif(under_simt(), reason="csrc/simt has threads of its own")


@pytest.mark.parametrize("name", RENDER_CASES)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_agrees_with_the_reference(backend, device, name):
    with evoworld.backend(backend):
        check_against_reference(volume_render, RENDER_CASES[name], device)


def crowd(rays=3000, channels=5):
    """More rays than one thread's share, all of them near each other."""
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(rays, 3, generator=draw) * 0.1 + torch.tensor([0.0, 0.0, 1.0])
    directions = torch.nn.functional.normalize(directions, dim=-1)
    grid = SparseGrid.from_points(1.5 * directions, 0.05)
    return {
        "features": torch.randn(grid.num_voxels, channels, generator=draw),
        "density": 3 * torch.rand(grid.num_voxels, generator=draw),
        "origins": torch.zeros(rays, 3),
        "directions": directions,
        "grid": grid,
        "near": 1.0,
        "far": 2.0,
        "step": 0.025,
        "jitter": torch.rand(rays, generator=draw),
    }


@needs_native
@needs_threads
def test_number_of_threads_changes_rounding_of_row_gradients_only():
    arguments = crowd()
    torch.set_num_threads(1)
    expected = evaluate(volume_render, arguments)
    for threads in (2, 5):
        torch.set_num_threads(threads)
        found = evaluate(volume_render, arguments)
        for name in ("0", "1", "2", "d_origins", "d_directions"):
            assert torch.equal(found[name], expected[name]), name
        for name in ("d_features", "d_density"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@needs_native
@needs_threads
def test_deterministic_mode_has_the_same_bits_for_any_number_of_threads(deterministic):
    arguments = crowd()
    torch.set_num_threads(1)
    expected = evaluate(volume_render, arguments)
    torch.set_num_threads(4)
    found = evaluate(volume_render, arguments)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


@needs_native
def test_poisoned_memory(monkeypatch, deterministic):
    """torch fills what is allocated uninitialised with NaN in this mode: all of it must be written."""
    for case in ("channels_17", "behind", "half_3", "empty_grid", "no_rays", "image_of_odd_width"):
        arguments = RENDER_CASES[case].build()
        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
        expected = evaluate(volume_render, arguments)
        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
        for name, found in evaluate(volume_render, arguments).items():
            if under_simt() and name in ("d_features", "d_density"):  # atomic additions
                torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-5)
            else:
                assert torch.equal(found, expected[name]), (case, name)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("wanted", ["features", "density", "origins", "directions"])
def test_one_gradient_alone_is_the_same(backend, device, wanted):
    arguments = RENDER_CASES["holes"].build()
    arguments = on_device(arguments, device)
    with evoworld.backend(backend):
        together = evaluate(volume_render, arguments, device=device)[f"d_{wanted}"]
        alone = evaluate(
            lambda **leaf: volume_render(**{**arguments, **leaf}), {wanted: arguments[wanted]}, device=device
        )
    torch.testing.assert_close(alone[f"d_{wanted}"], together)


def test_strides_do_not_matter():
    arguments = RENDER_CASES["jitter"].build()
    expected = volume_render(**arguments)
    strided = dict(arguments)
    strided["features"] = arguments["features"].T.contiguous().T
    strided["density"] = torch.stack([arguments["density"]] * 2, dim=-1)[:, 1]
    strided["directions"] = torch.stack([arguments["directions"]] * 2, dim=-1)[..., 0]
    strided["origins"] = arguments["origins"][:1].expand_as(arguments["origins"])  # one eye: all rows are equal
    strided["jitter"] = torch.stack([arguments["jitter"]] * 2, dim=-1)[:, 1]
    assert not any(strided[name].is_contiguous() for name in strided if isinstance(strided[name], torch.Tensor))
    for found, wanted in zip(volume_render(**strided), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@needs_native
def test_expanded_gradients():
    """``sum().backward()`` sends gradients with stride 0."""
    arguments = RENDER_CASES["channels_3"].build()
    arguments["density"].requires_grad_()
    features, depth, opacity = volume_render(**arguments)
    (found,) = torch.autograd.grad(features.sum() + depth.sum() + opacity.sum(), arguments["density"])
    with evoworld.backend("reference"):
        features, depth, opacity = volume_render(**arguments)
    (expected,) = torch.autograd.grad(features.sum() + depth.sum() + opacity.sum(), arguments["density"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_gradients_may_begin_anywhere_in_memory(backend, device):
    """A view of rows is contiguous, and its first element is not on a border of 16 bytes."""
    arguments = on_device(RENDER_CASES["channels_8"].build(), device)
    rays = arguments["origins"].shape[0]
    leaves = {k: v.requires_grad_() for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    upstream = torch.randn(rays * 8 + 3, device=device)
    with evoworld.backend(backend):
        outputs = volume_render(**arguments)
        for skip in (1, 2, 3):
            d_outputs = upstream[skip:][: rays * 8].view(rays, 8), upstream[skip:][:rays], upstream[skip:][:rays]
            found = torch.autograd.grad(outputs, list(leaves.values()), d_outputs, retain_graph=True)
            aligned = [x.clone() for x in d_outputs]
            expected = torch.autograd.grad(outputs, list(leaves.values()), aligned, retain_graph=True)
            for name, x, y in zip(leaves, found, expected, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def raw(name, device):
    """The arguments of the op below the public function: its tensors, and all that follows."""
    case = on_device(RENDER_CASES[name].build(), device)
    tensors = [case[key] for key in ("features", "density", "origins", "directions", "jitter")]
    march = [case[key] for key in ("near", "far", "step", "min_transmittance", "image_width")]
    return tensors, (*grid_arguments(case["grid"]), *march)


@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize("name", ["channels_3", "half_3", "jitter", "empty_grid", "no_rays"])
def test_opcheck(backend, device, name):
    torch.set_num_threads(1)  # opcheck compares gradients of two calls to the last bit or so
    tensors, rest = raw(name, device)
    leaves, ops = [x.clone().requires_grad_() for x in tensors[:4]], namespace(backend)
    torch.library.opcheck(ops.volume_render.default, (*leaves, tensors[4], *rest))
    outputs = ops.volume_render(*tensors, *rest)
    upstream = [torch.randn_like(x) for x in outputs]
    for wanted in ((True, True, True), (True, False, False), (False, True, False), (False, False, True)):
        arguments = (*upstream, *outputs, *tensors, *rest, *wanted, backend == "cpu")
        torch.library.opcheck(ops.volume_render_backward.default, arguments)


@pytest.mark.parametrize(("backend", "device"), FUSED)
def test_compiles_to_one_graph(backend, device):
    def shaded(arguments):
        features, depth, opacity = volume_render(**arguments)
        return (features * 2).sin(), depth + 1, opacity.exp()

    torch._dynamo.reset()
    torch.set_num_threads(1)
    compiled = torch.compile(shaded, fullgraph=True, backend="aot_eager")
    with evoworld.backend(backend):
        for name in ("channels_3", "several_pages", "jitter"):  # other numbers of rays, another grid, another argument
            arguments = RENDER_CASES[name].build()
            expected = evaluate(lambda **a: shaded(a), arguments, device=device)
            for key, found in evaluate(lambda **a: compiled(a), arguments, device=device).items():
                torch.testing.assert_close(found, expected[key], msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_autocast_keeps_marching_in_float32(backend, device):
    arguments = RENDER_CASES["channels_8"].build()
    arguments = on_device(arguments, device)
    layer = torch.nn.Linear(8, 8, device=device)
    with torch.autocast(device, dtype=torch.bfloat16), evoworld.backend(backend):
        features = layer(arguments["features"])
        rendered, depth, opacity = volume_render(**{**arguments, "features": features})
        rendered.float().square().sum().backward()
    assert (features.dtype, rendered.dtype) == (torch.bfloat16, torch.bfloat16)
    assert depth.dtype == opacity.dtype == torch.float32
    expected = volume_render(**{**arguments, "features": features.float()})
    torch.testing.assert_close(rendered.float(), expected[0], rtol=0.01, atol=0.01)
    torch.testing.assert_close(depth, expected[1])
    assert layer.weight.grad.isfinite().all() and layer.weight.grad.abs().max() > 0


def test_float64_is_computed_in_float64():
    arguments = RENDER_CASES["channels_3"].build()
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    features, depth, _ = volume_render(**wide)
    assert features.dtype == depth.dtype == torch.float64
    assert (depth - volume_render(**arguments)[1].double()).abs().max() > 1e-9


ROOM = RENDER_CASES["channels_3"].build()
VOXELS = ROOM["grid"].num_voxels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(VOXELS)}, r"volume_render: features: expected shape \[V, C\], got"),
        ({"features": torch.zeros(7, 3)}, rf"volume_render: features: expected {VOXELS} rows as the grid, got 7"),
        ({"features": torch.zeros(VOXELS, 3).long()}, "volume_render: features: expected float32 or .*got int64"),
        ({"density": torch.zeros(VOXELS, 1)}, r"volume_render: density: expected shape \[\d+\], got"),
        ({"density": torch.zeros(VOXELS, device="meta")}, "volume_render: density: expected device cpu, got meta"),
        ({"origins": torch.zeros(53, 4)}, r"volume_render: origins: expected shape \[R, 3\], got \[53, 4\]"),
        ({"origins": torch.zeros(53, 3).half()}, "volume_render: origins: expected float32 or float64, got float16"),
        ({"directions": torch.zeros(52, 3)}, r"volume_render: directions: expected shape \[53, 3\], got \[52, 3\]"),
        ({"jitter": torch.zeros(52)}, r"volume_render: jitter: expected shape \[53\], got \[52\]"),
        ({"step": 0.0}, "volume_render: near, far, step: expected numbers, step positive"),
        ({"step": -0.1}, "volume_render: near, far, step: .*step positive"),
        ({"near": float("nan")}, "volume_render: near, far, step: .*nan"),
        ({"far": float("inf")}, r"volume_render: step: expected at most 2\^24 steps"),
        ({"step": 1e-9}, r"volume_render: step: expected at most 2\^24 steps"),
        ({"min_transmittance": 1.0}, "volume_render: min_transmittance: expected 0 <= value < 1, got 1.0"),
        ({"min_transmittance": -0.1}, "volume_render: min_transmittance: expected 0 <= value < 1, got -0.1"),
        ({"image_width": -8}, "volume_render: image_width: expected an int >= 0, got -8"),
        ({"image_width": None}, "volume_render: image_width: expected an int >= 0, got None"),
        ({"image_width": True}, "volume_render: image_width: expected an int >= 0, got True"),
        ({"grid": "room"}, "volume_render: grid: expected a SparseGrid, got str"),
        ({"grid": SparseGrid(0.1, device="meta")}, "volume_render: grid: expected device cpu, got meta"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        volume_render(**{**ROOM, **change})
