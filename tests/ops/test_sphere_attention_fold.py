"""fold: plain attention on the folded query and key is sphere_attention."""

import math

import pytest
import torch
from torch.nn.functional import pad, scaled_dot_product_attention

import evoworld
from evoworld.ops import fold, sphere_attention
from evoworld.ops.sphere_attention_fold import zonal_columns
from evoworld.reference.sphere_attention import legendre
from evoworld.testing import evaluate
from evoworld.testing_attention import ATTENTION_CASES

CASES = [
    name
    for name, case in ATTENTION_CASES.items()
    if case.radius is None and case.keys and case.log_weight != "all masked" and case.batch
]
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def exact_logits(query, key, query_directions, key_directions, zonal, key_log_weight, scale, **_):
    """In float64, from the numbers that half precision holds."""
    logits = (query.shape[-1] ** -0.5 if scale is None else scale) * query.double() @ key.double().mT
    if zonal is not None:
        cosine = query_directions.double() @ key_directions.double().T
        polynomials = legendre(cosine, zonal.shape[1] - 1)
        logits = logits + sum(
            strength[:, None, None] * p for strength, p in zip(zonal.double().unbind(1), polynomials, strict=True)
        )
    return logits if key_log_weight is None else logits + key_log_weight.double()


def folded(arguments, **options):
    names = ("query", "key", "query_directions", "key_directions", "zonal", "key_log_weight", "scale")
    return fold(**{name: arguments[name] for name in names}, **options)


@pytest.mark.parametrize("name", CASES)
def test_products_are_logits(name):
    """Summed in float64, so that only the columns' own rounding shows: 2^-16 of the bias in half precision."""
    arguments = ATTENTION_CASES[name].build()
    dtype = arguments["query"].dtype
    kernel_scale = 1.0 if dtype == torch.float32 else arguments["query"].shape[-1] ** -0.5
    query, key = folded(arguments, kernel_scale=kernel_scale)
    assert query.dtype == key.dtype == dtype and query.shape[-1] == key.shape[-1] and query.shape[-1] % 8 == 0
    found = kernel_scale * query.double() @ key.double().mT
    expected = exact_logits(**arguments).expand_as(found)
    assert (found[expected.isneginf()] < -1e3).all()
    finite = expected.isfinite()
    size = expected[finite].abs().amax() if expected.numel() else 0
    allowed = size * (4 * torch.finfo(dtype).eps if dtype == torch.float32 else 2**-14)
    torch.testing.assert_close(found[finite], expected[finite], rtol=0, atol=float(allowed))


@pytest.mark.parametrize("name", CASES)
def test_plain_softmax_gives_the_op(name):
    """In float32 gradients too, to query, key, value, zonal and log weight."""
    arguments = ATTENTION_CASES[name].build()
    if arguments["query"].dtype != torch.float32:
        arguments = {k: x.float() if isinstance(x, torch.Tensor) else x for k, x in arguments.items()}

    def plain(value, radius, return_lse, **rest):
        query, key = folded(rest)
        logits = query @ key.mT
        return logits.softmax(-1) @ value, logits.logsumexp(-1)

    found, expected = evaluate(plain, arguments), evaluate(sphere_attention, arguments)
    for key in expected:
        scale = max(1, expected[key].abs().max().item()) if expected[key].numel() else 1
        torch.testing.assert_close(
            found[key], expected[key], rtol=0, atol=5e-5 * scale, msg=lambda m, key=key: f"{key}: {m}"
        )


@pytest.mark.parametrize("name", CASES)
def test_torchs_own_attention_gives_the_op(name):
    """Its fused kernels want value as wide as key: padded, and cut off again."""
    arguments = ATTENTION_CASES[name].build()
    dtype, value = arguments["query"].dtype, arguments["value"]
    kernel_scale = arguments["query"].shape[-1] ** -0.5
    query, key = folded(arguments, kernel_scale=kernel_scale)
    extra = query.shape[-1] - value.shape[-1]
    width = value.shape[-1]
    if extra >= 0:
        value = pad(value, (0, extra))
    found = scaled_dot_product_attention(query, key, value, scale=kernel_scale)[..., :width]
    expected, _ = sphere_attention(**arguments)
    concentrated = 4 if ATTENTION_CASES[name].kappa > 10 or ATTENTION_CASES[name].size > 1 else 1
    tolerance = 2e-5 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=0, atol=concentrated * tolerance)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("degree", "wide", "half"), [(None, 8, 8), (0, 8, 8), (1, 8, 16), (2, 16, 32), (3, 16, 48)])
def test_number_of_columns(dtype, degree, wide, half):
    x = torch.nn.functional.normalize(torch.randn(5, 3), dim=-1)
    zonal = None if degree is None else torch.ones(2, degree + 1)
    query, key = fold(*torch.randn(2, 1, 2, 5, 32).to(dtype), x, x, zonal)
    assert query.shape == key.shape == (1, 2, 5, 32 + (half if dtype.itemsize == 2 else wide))


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_addition_theorem(degree):
    x, y = torch.nn.functional.normalize(torch.randn(2, 40, 3, dtype=torch.float64), dim=-1)
    columns = zonal_columns(x, degree)
    assert columns.shape == (40, 2 * degree + 1)
    t = x @ y.T
    expected = (None, t, (3 * t**2 - 1) / 2, (5 * t**3 - 3 * t) / 2)[degree]
    torch.testing.assert_close(columns @ zonal_columns(y, degree).T, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bias_at_kappa_50_is_good_to_a_thousandth(dtype):
    x, y = torch.nn.functional.normalize(torch.randn(2, 200, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    nothing = torch.zeros(1, 1, 200, 64, dtype=dtype)
    query, key = fold(nothing, nothing, x, y, torch.tensor([[-50.0, 50.0]]), kernel_scale=0.125)
    found = 0.125 * query.double() @ key.double().mT
    expected = 50 * (x.double() @ y.double().T - 1)
    assert (found - expected).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", FLOATS)
def test_masked_keys_are_finite_and_weigh_nothing(dtype):
    """-inf in a column would make NaN of it times zero."""
    x = torch.nn.functional.normalize(torch.randn(6, 3), dim=-1)
    weight = torch.tensor([0.0, -math.inf, 1.0, -math.inf, -1.0, 0.5])
    tokens = torch.randn(3, 1, 2, 6, 16).to(dtype)
    for kernel_scale in (1.0, 0.125, 4.0):
        query, key = fold(*tokens[:2], x, x, torch.ones(2, 2), weight, kernel_scale=kernel_scale)
        assert query.isfinite().all() and key.isfinite().all()
        probabilities = (kernel_scale * query.float() @ key.float().mT).softmax(-1)
        assert (probabilities[..., weight.isneginf()] == 0).all()


def test_gradients_pass_the_rounding_of_half_precision():
    """Those of zonal and log weight, which are float32, though the columns are not."""
    arguments = ATTENTION_CASES["bfloat16_degree_3"].build()

    def plain(value, radius, return_lse, **rest):
        query, key = folded(rest, kernel_scale=0.25)
        logits = 0.25 * query.float() @ key.float().mT
        return (logits.softmax(-1) @ value.float()).to(value.dtype), logits.logsumexp(-1)

    found = evaluate(plain, arguments)
    with evoworld.backend("reference"):
        expected = evaluate(sphere_attention, arguments)
    for key in ("d_zonal", "d_key_log_weight", "d_query", "d_key", "d_value"):
        assert found[key].dtype == expected[key].dtype
        scale = expected[key].abs().max().item()
        torch.testing.assert_close(found[key].float(), expected[key].float(), rtol=0, atol=0.03 * scale)


def test_compiles_to_one_graph():
    arguments = ATTENTION_CASES["bfloat16_16"].build()
    found = torch.compile(folded, fullgraph=True, backend="aot_eager")(arguments)
    for x, y in zip(found, folded(arguments), strict=True):
        assert torch.equal(x, y)


ROW = torch.zeros(1, 2, 4, 20)
X = torch.eye(3)[[0, 1, 2, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": ROW[0]}, r"fold: query: expected shape \[B, N, L, D\], got \[2, 4, 20\]"),
        ({"key": torch.zeros(1, 2, 4, 24)}, r"fold: key: expected shape \[1, 2, S, 20\], got \[1, 2, 4, 24\]"),
        ({"key": ROW.half()}, "fold: key: expected float32, got float16"),
        ({"key_directions": X[:3]}, r"fold: key_directions: expected shape \[4, 3\], got \[3, 3\]"),
        ({"query_directions": 2 * X}, "fold: query_directions: expected unit vectors, got one of length 2"),
        ({"zonal": torch.ones(2, 5)}, "fold: zonal: expected 1 to 4 strengths a head, got 5"),
        ({"key_log_weight": torch.zeros(5)}, r"fold: key_log_weight: expected shape \[4\], got \[5\]"),
        ({"scale": math.inf}, "fold: scale: expected None or a finite number, got inf"),
        ({"kernel_scale": 0.0}, "fold: kernel_scale: expected a positive number, got 0"),
        ({"kernel_scale": math.nan}, "fold: kernel_scale: .*got nan"),
        ({"kernel_scale": -1.0}, "fold: kernel_scale: expected a positive number, got -1"),
    ],
)
def test_bad_input(change, message):
    good = {"query": ROW, "key": ROW, "query_directions": X, "key_directions": X}
    fold(**good)
    with pytest.raises(ValueError, match=message):
        fold(**{**good, **change})
