"""What attention on the sphere owes to its geometry, on every backend: symmetries, means and integrals."""

import math

import numpy
import pytest
import torch
from torch.nn.functional import normalize

import evoworld
from evoworld.geometry import Panorama, pose_from_euler
from evoworld.ops import sphere_attention
from evoworld.testing import backends, evaluate

BACKENDS = backends("sphere_attention")
on_every_backend = pytest.mark.parametrize(("backend", "device"), BACKENDS)
RADII = [None, 1.1]
CAMERA = Panorama(5, 10)  # an odd number of rows: one lies on the equator


def panorama_tokens(camera=CAMERA, batch=1, heads=2, width=16, value_width=24, degree=2, seed=0):
    """The arguments of self-attention among the pixels of a panorama, weighted by their areas."""
    draw = torch.Generator().manual_seed(seed)
    tokens = camera.height * camera.width
    query, key = torch.randn(2, batch, heads, tokens, width, generator=draw)
    directions = camera.directions().flatten(0, -2)
    return {
        "query": query,
        "key": key,
        "value": torch.randn(batch, heads, tokens, value_width, generator=draw),
        "query_directions": directions,
        "key_directions": directions,
        "zonal": torch.randn(heads, degree + 1, generator=draw),
        "key_log_weight": camera.solid_angle().flatten().log(),
    }


def with_gradients(backend, device, arguments):
    with evoworld.backend(backend):
        return evaluate(lambda **x: sphere_attention(**x, return_lse=True), arguments, device=device)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def no_pair_near(radius, x, y, margin=1e-3):
    """Whether the mask does not hang on a rounding."""
    angles = 2 * torch.asin((torch.cdist(x.double(), y.double()) / 2).clamp(max=1))
    return radius is None or (angles - radius).abs().min() > margin


def rolled(tokens, camera, columns):
    """Tokens [..., H W, C] of a panorama whose camera was turned by whole pixels."""
    return tokens.unflatten(-2, (camera.height, camera.width)).roll(columns, -2).flatten(-3, -2)


@on_every_backend
@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("columns", [1, -4])
def test_a_yaw_roll_rolls_the_output(backend, device, radius, columns):
    arguments = {**panorama_tokens(), "radius": radius}
    assert no_pair_near(radius, arguments["query_directions"], arguments["key_directions"])
    turned = {
        name: rolled(x, CAMERA, columns) if name in ("query", "key", "value") else x for name, x in arguments.items()
    }
    with evoworld.backend(backend):
        expected, expected_lse = call(device, arguments)
        found, lse = call(device, turned)
    torch.testing.assert_close(found, rolled(expected, CAMERA, columns), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse[..., None], rolled(expected_lse[..., None], CAMERA, columns), rtol=1e-5, atol=1e-5)
    assert (found - expected).abs().max() > 0.1


def call(device, arguments):
    moved = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    return [x.cpu() for x in sphere_attention(**moved, return_lse=True)]


@on_every_backend
@pytest.mark.parametrize("radius", RADII)
def test_turning_all_directions_changes_nothing(backend, device, radius):
    """The bias and the mask know only angles between directions: any rotation, gradients too."""
    arguments = {**panorama_tokens(degree=3), "radius": radius}
    rotation = pose_from_euler(torch.tensor([0, 0, 0, 0.7, -2.1, 0.4], dtype=torch.float64))[:3, :3]
    turned = {
        name: (x.double() @ rotation.T).float() if name.endswith("_directions") else x for name, x in arguments.items()
    }
    assert no_pair_near(radius, arguments["query_directions"], arguments["key_directions"])
    assert_same(with_gradients(backend, device, turned), with_gradients(backend, device, arguments))


@on_every_backend
@pytest.mark.parametrize("radius", RADII)
def test_the_order_of_tokens_does_not_matter(backend, device, radius):
    arguments = {**panorama_tokens(), "radius": radius}
    draw = torch.Generator().manual_seed(1)
    tokens = CAMERA.num_rays
    queries, keys = torch.randperm(tokens, generator=draw)[: tokens - 7], torch.randperm(tokens, generator=draw)
    shuffled = dict(arguments)
    shuffled["query"] = arguments["query"][:, :, queries]
    shuffled["query_directions"] = arguments["query_directions"][queries]
    shuffled["key_directions"] = arguments["key_directions"][keys]
    shuffled["key_log_weight"] = arguments["key_log_weight"][keys]
    for name in ("key", "value"):
        shuffled[name] = arguments[name][:, :, keys]
    with evoworld.backend(backend):
        expected, expected_lse = call(device, arguments)
        found, lse = call(device, shuffled)
    torch.testing.assert_close(found, expected[:, :, queries], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, expected_lse[:, :, queries], rtol=1e-5, atol=1e-5)


@on_every_backend
@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_constant_values_give_that_constant(backend, device, dtype, radius):
    """Half precision rounds the probabilities before they meet the values, after their sum was taken."""
    arguments = {**panorama_tokens(), "radius": radius}
    constant = torch.linspace(-2, 2, 24)
    arguments["value"] = constant.expand_as(arguments["value"]).contiguous()
    for name in ("query", "key", "value"):
        arguments[name] = arguments[name].to(dtype)
    with evoworld.backend(backend):
        output, _ = call(device, arguments)
    assert output.dtype == dtype
    allowed = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(output.float(), constant.expand_as(output), rtol=2 * allowed, atol=0)


@on_every_backend
def test_with_query_zero_and_areas_it_is_the_mean_over_the_sphere(backend, device):
    arguments = panorama_tokens()
    arguments["query"] = torch.zeros_like(arguments["query"])
    arguments["zonal"] = None
    with evoworld.backend(backend):
        output, lse = call(device, arguments)
    weights = CAMERA.solid_angle(torch.float64).flatten() / (4 * math.pi)
    mean = (arguments["value"].double() * weights[:, None]).sum(2, keepdim=True)
    torch.testing.assert_close(output.double(), mean.expand_as(output), rtol=0, atol=1e-6)
    torch.testing.assert_close(lse, torch.full_like(lse, math.log(4 * math.pi)), rtol=0, atol=1e-6)


def cap(axis, radius, rows=24):
    """Directions [S, 3] and weights [S] that integrate smooth functions over the cap around an axis: Gauss's."""
    low = math.cos(radius)
    nodes, weights = (torch.from_numpy(x) for x in numpy.polynomial.legendre.leggauss(rows))
    t = (low + 1) / 2 + (1 - low) / 2 * nodes
    azimuth = torch.arange(2 * rows, dtype=torch.float64) * (math.pi / rows)
    side = normalize(torch.linalg.cross(axis, torch.eye(3).double()[axis.abs().argmin()]), dim=-1)
    circle = azimuth.cos()[:, None] * side + azimuth.sin()[:, None] * torch.linalg.cross(axis, side)
    directions = t[:, None, None] * axis + (1 - t.square()).sqrt()[:, None, None] * circle
    return directions.flatten(0, 1), ((1 - low) / 2 * weights * math.pi / rows).repeat_interleave(2 * rows)


@on_every_backend
@pytest.mark.parametrize("radius", [None, 1.0])
@pytest.mark.parametrize("kappa", [0.5, 20.0])
def test_zonal_bias_is_the_density_of_von_mises_and_fisher(backend, device, kappa, radius):
    """Over the sphere or a cap, beyond which keys weigh much; its mean direction is x, shortened."""
    t = torch.linspace(-1.0 if radius is None else math.cos(radius), 1, 200_001, dtype=torch.float64)
    density = (kappa * t).exp()
    total = torch.trapezoid(density, t)
    length = (torch.trapezoid(density * t, t) / total).item()
    for axis in torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0], [0.36, -0.48, 0.8]]).double():
        y, weights = cap(axis, math.pi if radius is None else radius)
        if radius is not None:
            beyond, heavy = cap(-axis, math.pi - radius - 0.01)
            y, weights = torch.cat([y, beyond]), torch.cat([weights, 100 * heavy])
        y = normalize(y, dim=-1).float()
        arguments = {
            "query": torch.zeros(1, 1, 1, 16),
            "key": torch.zeros(1, 1, len(y), 16),
            "value": torch.nn.functional.pad(y, (0, 13))[None, None],
            "query_directions": axis[None].float(),
            "key_directions": y,
            "zonal": torch.tensor([[0.0, kappa]]),
            "key_log_weight": weights.log().float(),
            "radius": radius,
        }
        with evoworld.backend(backend):
            output, lse = call(device, arguments)
        torch.testing.assert_close(output[0, 0, 0, :3].double(), length * axis, rtol=0, atol=1e-5)
        assert lse.item() == pytest.approx((2 * math.pi * total).log().item(), abs=2e-5)
    if radius is None:
        assert length == pytest.approx(1 / math.tanh(kappa) - 1 / kappa)


@on_every_backend
@pytest.mark.parametrize("radius", RADII)
def test_parts_of_the_keys_merge_to_the_whole(backend, device, radius):
    """As in ring attention, gradients too: by lse, a part of which may not reach some query."""
    arguments = {**panorama_tokens(batch=2), "radius": radius}

    def whole(**leaves):
        return sphere_attention(**leaves, return_lse=True)

    def merged(key, value, key_directions, key_log_weight, **rest):
        parts = []
        for part in (slice(0, 13), slice(13, None)):
            own = {"key_directions": key_directions[part], "key_log_weight": key_log_weight[part]}
            parts.append(whole(key=key[:, :, part], value=value[:, :, part], **own, **rest))
        (first, first_lse), (second, second_lse) = parts
        lse = torch.logaddexp(first_lse, second_lse)
        shares = (first_lse - lse).exp()[..., None], (second_lse - lse).exp()[..., None]
        return first * shares[0] + second * shares[1], lse

    with evoworld.backend(backend):
        expected, found = (evaluate(op, arguments, device=device) for op in (whole, merged))
    if radius is not None:
        _, lse = call("cpu", {**panorama_tokens(), **first_keys(panorama_tokens(), 13), "radius": radius})
        assert lse.isneginf().any()
    assert_same(found, expected)


def first_keys(arguments, count):
    part = {name: arguments[name][:, :, :count] for name in ("key", "value")}
    part.update({name: arguments[name][:count] for name in ("key_directions", "key_log_weight")})
    return part
