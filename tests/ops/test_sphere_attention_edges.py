"""Where attention on the sphere goes wrong: poles, duplicates, antipodes, no keys, sharp peaks, the rim of a radius."""

import math

import pytest
import torch
from torch.nn.functional import normalize

import evoworld
from evoworld.geometry import Panorama
from evoworld.ops import sphere_attention
from evoworld.testing import backends, evaluate, on_device

BACKENDS = backends("sphere_attention")
on_every_backend = pytest.mark.parametrize(("backend", "device"), BACKENDS)
POLES_AND_AXES = torch.cat([torch.eye(3), -torch.eye(3)])


def tokens(x, y, width=16, value_width=16, heads=2, batch=1, degree=1, dtype=torch.float32, **rest):
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=draw)

    return {
        "query": normal(batch, heads, len(x), width).to(dtype),
        "key": normal(batch, heads, len(y), width).to(dtype),
        "value": normal(batch, heads, len(y), value_width).to(dtype),
        "query_directions": x,
        "key_directions": y,
        "zonal": normal(heads, degree + 1),
        "key_log_weight": normal(len(y)),
        "return_lse": True,
        **rest,
    }


def random_directions(count, seed=0):
    return normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)), dim=-1)


def call(backend, device, arguments):
    with evoworld.backend(backend):
        return [x.cpu() for x in sphere_attention(**on_device(arguments, device))]


def gradients(backend, device, arguments):
    with evoworld.backend(backend):
        return evaluate(sphere_attention, arguments, device=device)


@on_every_backend
@pytest.mark.parametrize("degree", [1, 3])
def test_poles_and_antipodes_have_exact_polynomials(backend, device, degree):
    """P_l(1) = 1 and P_l(-1) = (-1)^l: with one key left, lse is its logit."""
    arguments = tokens(POLES_AND_AXES, POLES_AND_AXES, degree=degree)
    arguments["query"] = torch.zeros_like(arguments["query"])
    zonal = arguments["zonal"]
    at_axis = {1: zonal.sum(1), -1: (zonal * torch.tensor([1.0, -1.0, 1.0, -1.0])[: degree + 1]).sum(1)}
    across = (zonal * torch.tensor([1.0, 0.0, -0.5, 0.0])[: degree + 1]).sum(1)
    for j in range(6):
        only = torch.full((6,), -math.inf)
        only[j] = 0.25
        _, lse = call(backend, device, {**arguments, "key_log_weight": only})
        for i in range(6):
            cosine = int(POLES_AND_AXES[i] @ POLES_AND_AXES[j])
            expected = at_axis.get(cosine, across) + 0.25
            torch.testing.assert_close(lse[0, :, i], expected, rtol=1e-6, atol=1e-6)


@on_every_backend
@pytest.mark.parametrize("radius", [None, 0.5])
def test_a_key_twice_is_a_key_of_twice_the_weight(backend, device, radius):
    x, y = random_directions(20), random_directions(33, seed=1)
    arguments = tokens(x, y, radius=radius)
    twice = dict(arguments)
    for name, dim in (("key", 2), ("value", 2), ("key_directions", 0), ("key_log_weight", 0)):
        twice[name] = torch.cat([arguments[name]] * 2, dim)
    heavier = {**arguments, "key_log_weight": arguments["key_log_weight"] + math.log(2)}
    for found, expected in zip(call(backend, device, twice), call(backend, device, heavier), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@on_every_backend
def test_radius_zero_keeps_the_same_direction_alone(backend, device):
    x = torch.cat([POLES_AND_AXES, random_directions(10)])
    arguments = tokens(x, x.flip(0), radius=0.0, zonal=None, key_log_weight=None)
    output, lse = call(backend, device, arguments)
    torch.testing.assert_close(output, arguments["value"].flip(2))
    logits = (arguments["query"] * arguments["key"].flip(2)).sum(-1) / 4
    torch.testing.assert_close(lse, logits, rtol=1e-5, atol=1e-5)


@on_every_backend
@pytest.mark.parametrize("radius", [0.01, 0.3, 1.5, 2.9, 3.13])
def test_keys_just_inside_the_radius_count_and_just_outside_do_not(backend, device, radius):
    """On circles around queries at poles, on axes and between; near pi the cosine alone could not tell them apart."""
    x = torch.cat([POLES_AND_AXES, random_directions(4)])
    slack = 5e-7 + 4e-7 / math.cos(radius / 2)  # rounding of directions, and of chords near a diameter
    azimuth = torch.arange(24, dtype=torch.float64) * (math.pi / 12)
    for factor, inside in ((-1, True), (1, False)):
        angle = radius + factor * slack
        for i in range(len(x)):
            axis = x[i].double()
            side = normalize(torch.linalg.cross(axis, torch.eye(3).double()[axis.abs().argmin()]), dim=-1)
            up = torch.linalg.cross(axis, side)
            circle = azimuth.cos()[:, None] * side + azimuth.sin()[:, None] * up
            y = (math.cos(angle) * axis + math.sin(angle) * circle).float()
            arguments = tokens(x[i : i + 1], y, radius=radius, heads=1, zonal=None, key_log_weight=None)
            arguments["query"] = torch.zeros_like(arguments["query"])
            _, lse = call(backend, device, arguments)
            expected = math.log(24) if inside else -math.inf
            torch.testing.assert_close(lse, torch.full_like(lse, expected), rtol=1e-6, atol=1e-6)


@on_every_backend
def test_skipped_tiles_hold_no_key(backend, device):
    """Every pair within the radius counts, whatever tiles of tokens are made of: lse counts them."""
    camera = Panorama(16, 32)
    y = camera.directions().flatten(0, -2)
    x = torch.cat([random_directions(90), POLES_AND_AXES, y[::7]])
    angles = 2 * torch.asin((torch.cdist(x.double(), y.double()) / 2).clamp(max=1))
    for radius in (0.05, 0.3, 1.0, 2.5):
        while (angles - radius).abs().min() < 1e-5:
            radius += 2.3e-5
        arguments = tokens(x, y, radius=radius, heads=1, zonal=None, key_log_weight=None)
        arguments["query"] = torch.zeros_like(arguments["query"])
        _, lse = call(backend, device, arguments)
        assert torch.equal(lse.exp().round()[0, 0].double(), (angles <= radius).sum(1).double()), radius


@on_every_backend
@pytest.mark.parametrize("why", ["radius", "weights", "no keys"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_queries_without_a_key(backend, device, why, dtype):
    """Output 0, lse -inf, gradients 0 and nowhere NaN; their neighbours are as they were."""
    up = torch.tensor([[0.0, -1.0, 0.0]])
    y = normalize(random_directions(45) * 0.2 + up, dim=-1)
    x = normalize(torch.cat([random_directions(30) * 0.2 + up, random_directions(11) * 0.2 - up]), dim=-1)
    lonely = slice(30, None) if why == "radius" else slice(None)
    arguments = tokens(x, y, dtype=dtype, radius=1.5 if why == "radius" else None)
    if why == "weights":
        arguments["key_log_weight"] = torch.full((45,), -math.inf)
    if why == "no keys":
        arguments.update(key=arguments["key"][:, :, :0], value=arguments["value"][:, :, :0])
        arguments.update(key_directions=y[:0], key_log_weight=arguments["key_log_weight"][:0])
    results = gradients(backend, device, arguments)
    output, lse = results["0"], results["1"]
    assert (output[:, :, lonely] == 0).all() and lse[:, :, lonely].isneginf().all()
    assert not any(x.isnan().any() for x in results.values())
    assert (results["d_query"][:, :, lonely] == 0).all()
    if why == "radius":
        assert (output[:, :, :30] != 0).any(-1).all() and (results["d_query"][:, :, :30] != 0).any(-1).all()
        fewer = {**arguments, "query": arguments["query"][:, :, :30], "query_directions": x[:30]}
        expected = call(backend, device, fewer)
        torch.testing.assert_close(output[:, :, :30], expected[0], rtol=0, atol=8 * torch.finfo(dtype).eps)
        torch.testing.assert_close(lse[:, :, :30], expected[1])
    else:
        assert all((x == 0).all() for name, x in results.items() if name.startswith("d_"))


@on_every_backend
@pytest.mark.parametrize("radius", [None, 0.9])
def test_masked_keys_get_and_give_nothing(backend, device, radius):
    """Whatever a masked key holds, NaN aside: its numbers are huge here."""
    x, y = random_directions(40), random_directions(70, seed=1)
    arguments = tokens(x, y, radius=radius)
    masked = torch.arange(70) % 3 == 1
    arguments["key_log_weight"][masked] = -math.inf
    arguments["key"][:, :, masked] *= 1e4
    arguments["value"][:, :, masked] = 1e30
    kept = dict(arguments)
    for name in ("key_directions", "key_log_weight"):
        kept[name] = arguments[name][~masked]
    for name in ("key", "value"):
        kept[name] = arguments[name][:, :, ~masked]
    found, expected = gradients(backend, device, arguments), gradients(backend, device, kept)
    for name in ("d_key", "d_value"):
        assert (found[name][:, :, masked] == 0).all(), name
        found[name] = found[name][:, :, ~masked]
    assert (found["d_key_log_weight"][masked] == 0).all()
    found["d_key_log_weight"] = found["d_key_log_weight"][~masked]
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@on_every_backend
@pytest.mark.parametrize("queries", [0, 1, 3])
@pytest.mark.parametrize("keys", [0, 1])
@pytest.mark.parametrize("radius", [None, 2.0])
def test_hardly_any_tokens(backend, device, queries, keys, radius):
    up = torch.tensor([[0.0, -1.0, 0.0]])
    arguments = tokens(
        up.expand(queries, 3).contiguous(), up.expand(keys, 3).contiguous(), radius=radius, value_width=40
    )
    results = gradients(backend, device, arguments)
    assert results["0"].shape == (1, 2, queries, 40) and results["1"].shape == (1, 2, queries)
    if keys == 0:
        assert (results["0"] == 0).all() and results["1"].isneginf().all()
        assert (results["d_query"] == 0).all() and (results["d_zonal"] == 0).all()
    else:
        torch.testing.assert_close(results["0"], arguments["value"].expand(1, 2, queries, 40))
        logit = (arguments["query"] * arguments["key"]).sum(-1) / 4 + arguments["zonal"].sum(1)[:, None]
        torch.testing.assert_close(results["1"], logit + arguments["key_log_weight"], rtol=1e-5, atol=1e-5)
        upstream = results["d_value"].sum(2)  # with one key every probability is 1
        assert upstream.isfinite().all() and (queries == 0 or upstream.abs().max() > 0)


LOGITS = {"vMF": [0.0, 50.0], "vMF, highest 0": [-50.0, 50.0], "degree 3": [3.0, 50.0, -20.0, 10.0]}


@on_every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("series", LOGITS)
def test_logits_at_kappa_50_are_good_to_a_thousandth(backend, device, dtype, series):
    """Whatever the storage: with one key left, lse is its logit."""
    camera = Panorama(6, 12)
    x, y = torch.cat([random_directions(40), POLES_AND_AXES]), camera.directions().flatten(0, -2)
    arguments = tokens(x, y, dtype=dtype, width=64, value_width=64, heads=1, zonal=torch.tensor([LOGITS[series]]))
    wide = {name: v.double() for name, v in arguments.items() if isinstance(v, torch.Tensor)}
    log_weight = camera.solid_angle().flatten().log() - 9.37  # as of a larger panorama, and no number of half precision
    cosine = wide["query_directions"] @ wide["key_directions"].T
    legendre = 1, cosine, (3 * cosine**2 - 1) / 2, (5 * cosine**3 - 3 * cosine) / 2
    exact = (wide["query"] @ wide["key"].mT)[0, 0] / 8 + log_weight.double()
    exact += sum(strength * p for strength, p in zip(wide["zonal"][0], legendre, strict=False))
    for j in (0, 1, 17, 35, 36, 70, 71):
        only = torch.full((72,), -math.inf)
        only[j] = log_weight[j]
        _, lse = call(backend, device, {**arguments, "key_log_weight": only})
        assert (lse[0, 0].double() - exact[:, j]).abs().max() < 1e-3
    _, lse = call(backend, device, {**arguments, "key_log_weight": log_weight})
    assert (lse[0, 0].double() - exact.logsumexp(1)).abs().max() < 1e-3


@on_every_backend
@pytest.mark.parametrize("size", [1e-3, 30.0])
def test_sharp_and_flat_softmax(backend, device, size):
    """Logits of thousands do not overflow, and equal ones are not torn apart."""
    x = random_directions(33)
    arguments = tokens(x, x)
    arguments["query"], arguments["key"] = size * arguments["query"], size * arguments["key"]
    found, expected = call(backend, device, arguments), call("reference", "cpu", as_float64(arguments))
    torch.testing.assert_close(found[0].double(), expected[0], rtol=0, atol=1e-5 + 1e-6 * size**2)
    torch.testing.assert_close(found[1].double(), expected[1], rtol=1e-6, atol=1e-5)
    assert expected[1].abs().max() > 1000 or size < 1


def as_float64(arguments):
    return {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
