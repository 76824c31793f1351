"""The specification of sphere_attention against loops in plain Python, by finite differences, and by closed forms."""

import itertools
import math

import numpy
import pytest
import torch

from evoworld import reference

BATCH, HEADS, QUERIES, KEYS, WIDTH, VALUE_WIDTH = 2, 3, 7, 9, 5, 4


def inputs(degree=1, seed=0, queries=QUERIES, keys=KEYS):
    """Arguments in float64; directions that no other key or query shares."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    directions = torch.nn.functional.normalize(normal(queries + keys, 3), dim=-1)
    return {
        "query": normal(BATCH, HEADS, queries, WIDTH),
        "key": normal(BATCH, HEADS, keys, WIDTH),
        "value": normal(BATCH, HEADS, keys, VALUE_WIDTH),
        "query_directions": directions[:queries],
        "key_directions": directions[queries:],
        "zonal": None if degree is None else 2 * normal(HEADS, degree + 1),
        "key_log_weight": normal(keys),
    }


def angle(x, y):
    """Of two vectors, radians, by a formula that is exact at all angles."""
    x, y = numpy.array(x), numpy.array(y)
    return math.atan2(numpy.linalg.norm(numpy.cross(x, y)), float(x @ y))


def by_loops(
    query, key, value, query_directions, key_directions, zonal=None, key_log_weight=None, radius=None, scale=None
):
    """One pair of tokens at a time; numpy has the Legendre series."""
    batch, heads, queries, width = query.shape
    scale = 1 / math.sqrt(width) if scale is None else scale
    output = torch.zeros(batch, heads, queries, value.shape[-1], dtype=torch.float64)
    lse = torch.full((batch, heads, queries), -math.inf, dtype=torch.float64)
    for b, n, i in itertools.product(range(batch), range(heads), range(queries)):
        x, weights = query_directions[i].tolist(), {}
        for j in range(key.shape[2]):
            y = key_directions[j].tolist()
            if radius is not None and angle(x, y) > radius:
                continue
            logit = scale * sum(q * k for q, k in zip(query[b, n, i].tolist(), key[b, n, j].tolist(), strict=True))
            if zonal is not None:
                cosine = sum(p * q for p, q in zip(x, y, strict=True))
                logit += numpy.polynomial.legendre.legval(cosine, zonal[n].numpy())
            if key_log_weight is not None:
                logit += key_log_weight[j].item()
            if logit > -math.inf:
                weights[j] = math.exp(logit)
        if weights:
            total = sum(weights.values())
            output[b, n, i] = sum(weight / total * value[b, n, j] for j, weight in weights.items())
            lse[b, n, i] = math.log(total)
    return output, lse


@pytest.mark.parametrize("degree", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("radius", [None, 0.4, 1.2, 2.5])
def test_equals_loops(degree, radius):
    queries = KEYS if degree == 3 else QUERIES  # with as many of both no shape tells which is which
    arguments = {**inputs(degree, queries=queries), "radius": radius, "scale": None if radius else 0.7}
    if degree == 2:
        arguments["key_log_weight"] = None
    found = reference.sphere_attention(**arguments, return_lse=True)
    for x, y in zip(found, by_loops(**arguments), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
    if radius == 0.4:
        assert found[1].isneginf().any() and found[1].isfinite().any()


def test_keys_of_weight_zero_count_for_nothing():
    arguments = inputs()
    arguments["key_log_weight"][::2] = -math.inf
    kept = {name: arguments[name][1::2] for name in ("key_directions", "key_log_weight")}
    kept.update({name: arguments[name][:, :, 1::2] for name in ("key", "value")})
    found = reference.sphere_attention(**arguments, return_lse=True)
    for x, y in zip(found, reference.sphere_attention(**{**arguments, **kept}, return_lse=True), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


LEAVES = ("query", "key", "value", "zonal", "key_log_weight")


@pytest.mark.parametrize("radius", [None, 0.6, 1.2])
@pytest.mark.parametrize("degree", [None, 0, 1, 2, 3])
def test_gradients(degree, radius):
    arguments = inputs(degree, queries=4, keys=5)
    names = [name for name in LEAVES if arguments[name] is not None]

    def op(*leaves):
        output, lse = reference.sphere_attention(
            **{**arguments, **dict(zip(names, leaves, strict=True))}, radius=radius, return_lse=True
        )
        return output, lse[lse.isfinite()]

    if radius == 0.6:
        assert op(*[arguments[name] for name in names])[1].numel() < BATCH * HEADS * 4  # some query has no key
    assert torch.autograd.gradcheck(op, [arguments[name].requires_grad_() for name in names])


def test_gradients_are_those_of_the_docstring():
    arguments = inputs(degree=3)
    leaves = [arguments[name].requires_grad_() for name in LEAVES]
    output, lse = reference.sphere_attention(**arguments, return_lse=True)
    d_output, d_lse = output.detach().cos(), lse.detach().sin()
    d_query, d_key, d_value, d_zonal, d_key_log_weight = torch.autograd.grad((output, lse), leaves, (d_output, d_lse))

    query, key, value, zonal, key_log_weight = (leaf.detach() for leaf in leaves)
    cosine = arguments["query_directions"] @ arguments["key_directions"].T
    series = numpy.polynomial.legendre.legvander(cosine.numpy(), 3)
    legendre = torch.from_numpy(series)  # [L, S, K + 1]
    scale = WIDTH**-0.5
    logits = scale * query @ key.mT + torch.einsum("nl, ijl -> nij", zonal, legendre) + key_log_weight
    p = torch.softmax(logits, -1)
    delta = (d_output * output).sum(-1) - d_lse
    d_s = p * (d_output @ value.mT - delta[..., None])
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(d_query, scale * d_s @ key, **close)
    torch.testing.assert_close(d_key, scale * d_s.mT @ query, **close)
    torch.testing.assert_close(d_value, p.mT @ d_output, **close)
    torch.testing.assert_close(d_zonal, torch.einsum("bnij, ijl -> nl", d_s, legendre), **close)
    torch.testing.assert_close(d_key_log_weight, d_s.sum((0, 1, 2)), **close)
    torch.testing.assert_close(d_zonal[:, 0], d_lse.sum((0, 2)), **close)


def test_queries_without_a_key_have_no_gradients():
    arguments = inputs()
    arguments["query_directions"][0] = torch.tensor([0.0, 0.0, 1.0])
    arguments["key_directions"][:, 2] = -arguments["key_directions"][:, 2].abs()
    leaves = [arguments[name].requires_grad_() for name in LEAVES]
    output, lse = reference.sphere_attention(**arguments, radius=1.5, return_lse=True)
    assert (output[:, :, 0] == 0).all() and lse[:, :, 0].isneginf().all()
    gradients = torch.autograd.grad((output[:, :, 0].sum(), lse[:, :, 0].sum()), leaves)
    assert all((x == 0).all() for x in gradients)


@pytest.mark.parametrize("queries, keys", [(0, 4), (4, 0), (0, 0), (1, 1)])
def test_no_tokens(queries, keys):
    arguments = inputs(queries=queries, keys=keys)
    output, lse = reference.sphere_attention(**arguments, return_lse=True)
    assert output.shape == (BATCH, HEADS, queries, VALUE_WIDTH) and lse.shape == (BATCH, HEADS, queries)
    if keys == 0:
        assert (output == 0).all() and lse.isneginf().all()
    else:
        torch.testing.assert_close(output, arguments["value"].expand_as(output) if queries else output)


def test_half_circle_of_antipodes_is_within_pi():
    """In float32 the squares of a diameter can be a little more than 4."""
    x = torch.nn.functional.normalize(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    query = key = torch.zeros(1, 1, 500, 4)
    value = torch.randn(1, 1, 500, 4)
    assert ((2 * x).square().sum(-1) > 4).any()
    for radius in (math.pi, 4.0, math.inf):
        found = reference.sphere_attention(query, key, value, x, -x, radius=radius)
        torch.testing.assert_close(found, value.mean(2, keepdim=True).expand_as(found))


def gauss_sphere(rows):
    """Directions [S, 3] and weights [S] that integrate polynomials up to degree 2 rows - 1 over the sphere exactly."""
    z, weights = (torch.from_numpy(x) for x in numpy.polynomial.legendre.leggauss(rows))
    longitude = torch.arange(2 * rows, dtype=torch.float64) * (math.pi / rows)
    flat = (1 - z.square()).sqrt()[:, None]
    directions = torch.stack((flat * longitude.cos(), flat * longitude.sin(), z[:, None].expand(-1, 2 * rows)), -1)
    return directions.flatten(0, 1), (weights * math.pi / rows).repeat_interleave(2 * rows)


def funk_hecke(series, degree):
    """By what a zonal kernel exp(series(x.y)) multiplies harmonics of a degree: 2 pi int exp(series(t)) P_l(t) dt."""
    t, weights = numpy.polynomial.legendre.leggauss(200)
    kernel = numpy.exp(numpy.polynomial.legendre.legval(t, series))
    return 2 * math.pi * float((weights * kernel * numpy.polynomial.legendre.legval(t, [0] * degree + [1])).sum())


def harmonics(directions):
    """One of each degree from 0 to 3: [..., 4]."""
    x, y, z = directions.unbind(-1)
    return torch.stack((torch.ones_like(x), y, x * z, x * y * z), -1)


@pytest.mark.parametrize("series", [[0.0, 8.0], [-1.0, 3.0, 2.0], [0.5, 1.0, -2.0, 1.5]])
def test_is_a_convolution_over_the_sphere(series):
    """With query zero and areas as weights, harmonics come out multiplied by the kernel's (Funk and Hecke)."""
    y, weights = gauss_sphere(32)
    x = inputs(queries=50)["query_directions"]
    output, lse = reference.sphere_attention(
        torch.zeros(1, 1, 50, 4, dtype=torch.float64),
        torch.zeros(1, 1, len(y), 4, dtype=torch.float64),
        harmonics(y)[None, None],
        x,
        y,
        zonal=torch.tensor([series], dtype=torch.float64),
        key_log_weight=weights.log(),
        return_lse=True,
    )
    factors = torch.tensor([funk_hecke(series, degree) for degree in range(4)], dtype=torch.float64)
    torch.testing.assert_close(lse[0, 0], factors[0].log().expand(50), rtol=0, atol=1e-10)
    torch.testing.assert_close(output[0, 0], harmonics(x) * factors / factors[0], rtol=0, atol=1e-10)


def test_of_von_mises_and_fisher():
    """Its normaliser is 4 pi sinh(kappa) / kappa, its mean (coth kappa - 1 / kappa) x."""
    kappa = 8.0
    assert funk_hecke([0, kappa], 0) == pytest.approx(4 * math.pi * math.sinh(kappa) / kappa)
    mean = funk_hecke([0, kappa], 1) / funk_hecke([0, kappa], 0)
    assert mean == pytest.approx(1 / math.tanh(kappa) - 1 / kappa)
