"""What sphere_attention refuses, once, at the door: the message names the argument, what was expected and what came."""

import math

import pytest
import torch

from evoworld.ops import sphere_attention
from evoworld.testing_attention import ATTENTION_CASES

GOOD = ATTENTION_CASES["radius"].build()  # 128 queries and keys of 2 batches and 2 heads, 16 wide
X = GOOD["query_directions"]
NAN, INF = math.nan, math.inf


def with_row(index, row):
    changed = X.clone()
    changed[index] = torch.tensor(row)
    return changed


def zeros(*shape, **options):
    return torch.zeros(shape, **options)


TOKENS = {
    "query of 3 dimensions": (
        {"query": zeros(2, 128, 16)},
        r"query: expected shape \[B, N, L, D\], got \[2, 128, 16\]",
    ),
    "no query": ({"query": None}, "query: expected a tensor, got NoneType"),
    "query of integers": ({"query": zeros(2, 2, 128, 16).long()}, "query: expected float32 or .*, got int64"),
    "key of other batches": (
        {"key": zeros(1, 2, 128, 16)},
        r"key: expected shape \[2, 2, S, 16\], got \[1, 2, 128, 16\]",
    ),
    "key of other heads": (
        {"key": zeros(2, 1, 128, 16)},
        r"key: expected shape \[2, 2, S, 16\], got \[2, 1, 128, 16\]",
    ),
    "key of other width": (
        {"key": zeros(2, 2, 128, 24)},
        r"key: expected shape \[2, 2, S, 16\], got \[2, 2, 128, 24\]",
    ),
    "key of other dtype": ({"key": zeros(2, 2, 128, 16).half()}, "key: expected float32, got float16"),
    "key on another device": ({"key": zeros(2, 2, 128, 16, device="meta")}, "key: expected device cpu, got meta"),
    "value of other length": (
        {"value": zeros(2, 2, 127, 16)},
        r"value: expected shape \[2, 2, 128, Dv\], got \[2, 2, 127, 16\]",
    ),
    "value of other dtype": ({"value": zeros(2, 2, 128, 16).bfloat16()}, "value: expected float32, got bfloat16"),
    "value on another device": ({"value": zeros(2, 2, 128, 16, device="meta")}, "value: expected device cpu, got meta"),
    "query too narrow": (
        {"query": zeros(2, 2, 128, 15), "key": zeros(2, 2, 128, 15)},
        "query: expected rows of 16 to 128 elements, got 15",
    ),
    "query too wide": (
        {"query": zeros(2, 2, 128, 129), "key": zeros(2, 2, 128, 129)},
        "query: expected rows of 16 to 128 elements, got 129",
    ),
    "value too narrow": ({"value": zeros(2, 2, 128, 8)}, "value: expected rows of 16 to 128 elements, got 8"),
    "value too wide": ({"value": zeros(2, 2, 128, 256)}, "value: expected rows of 16 to 128 elements, got 256"),
}
GEOMETRY = {
    "too few query directions": (
        {"query_directions": X[:-1]},
        r"query_directions: expected shape \[128, 3\], got \[127, 3\]",
    ),
    "too many key directions": (
        {"key_directions": X.repeat(2, 1)},
        r"key_directions: expected shape \[128, 3\], got \[256, 3\]",
    ),
    "directions as an image": (
        {"key_directions": X.view(8, 16, 3)},
        r"key_directions: expected shape \[128, 3\], got \[8, 16, 3\]",
    ),
    "angles for directions": (
        {"query_directions": X[:, :2]},
        r"query_directions: expected shape \[128, 3\], got \[128, 2\]",
    ),
    "directions of half precision": (
        {"key_directions": X.half()},
        "key_directions: expected float32 or float64, got float16",
    ),
    "directions on another device": (
        {"query_directions": X.to("meta")},
        "query_directions: expected device cpu, got meta",
    ),
    "no directions": ({"key_directions": None}, "key_directions: expected a tensor, got NoneType"),
    "one direction twice as long": (
        {"query_directions": with_row(77, [0.0, 2.0, 0.0])},
        "query_directions: expected unit vectors, got one of length 2 at 77",
    ),
    "the worst of several": (
        {"key_directions": with_row([3, 90, 100], [[0.0, 1.01, 0.0], [0.9, 0.0, 0.0], [0.0, 0.0, -1.02]])},
        "key_directions: expected unit vectors, got one of length 0.9 at 90",
    ),
    "a direction of length zero": (
        {"key_directions": with_row(5, [0.0, 0.0, 0.0])},
        "key_directions: expected unit vectors, got one of length 0 at 5",
    ),
    "a direction that is NaN": (
        {"query_directions": with_row(127, [NAN, 0.0, 0.0])},
        "query_directions: expected unit vectors, got one of length nan at 127",
    ),
    "an infinite direction": (
        {"query_directions": with_row(0, [INF, 0.0, 0.0])},
        "query_directions: expected unit vectors, got one of length inf at 0",
    ),
    "directions that are slightly too long": (
        {"key_directions": X * 1.0001},
        "key_directions: expected unit vectors, got one of length 1.0001",
    ),
}
BIAS = {
    "zonal of other heads": ({"zonal": zeros(3, 2)}, r"zonal: expected shape \[2, K \+ 1\], got \[3, 2\]"),
    "zonal without heads": ({"zonal": zeros(2)}, r"zonal: expected shape \[2, K \+ 1\], got \[2\]"),
    "degree 4": ({"zonal": zeros(2, 5)}, "zonal: expected 1 to 4 strengths a head, got 5"),
    "no degree": ({"zonal": zeros(2, 0)}, "zonal: expected 1 to 4 strengths a head, got 0"),
    "zonal of integers": ({"zonal": zeros(2, 2).int()}, "zonal: expected float32 or .*, got int32"),
    "zonal on another device": ({"zonal": zeros(2, 2, device="meta")}, "zonal: expected device cpu, got meta"),
    "a strength for zonal": ({"zonal": 3.0}, "zonal: expected a tensor, got float"),
    "too few weights": ({"key_log_weight": zeros(127)}, r"key_log_weight: expected shape \[128\], got \[127\]"),
    "weights for each head": (
        {"key_log_weight": zeros(2, 128)},
        r"key_log_weight: expected shape \[128\], got \[2, 128\]",
    ),
    "weights on another device": (
        {"key_log_weight": zeros(128, device="meta")},
        "key_log_weight: expected device cpu, got meta",
    ),
}
NUMBERS = {
    "negative radius": ({"radius": -0.1}, "radius: expected None or radians >= 0, got -0.1"),
    "radius NaN": ({"radius": NAN}, "radius: expected None or radians >= 0, got nan"),
    "radius of text": ({"radius": "30"}, "radius: expected None or radians >= 0, got '30'"),
    "radius True": ({"radius": True}, "radius: expected None or radians >= 0, got True"),
    "radius a tensor": ({"radius": torch.ones(2)}, "radius: expected None or radians >= 0, got tensor"),
    "scale NaN": ({"scale": NAN}, "scale: expected None or a finite number, got nan"),
    "scale infinite": ({"scale": INF}, "scale: expected None or a finite number, got inf"),
    "scale of text": ({"scale": "1"}, "scale: expected None or a finite number, got '1'"),
}
BAD = {**TOKENS, **GEOMETRY, **BIAS, **NUMBERS}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what):
    change, message = BAD[what]
    with pytest.raises(ValueError, match=f"^sphere_attention: {message}"):
        sphere_attention(**{**GOOD, **change})


FINE = {
    "radius of int": {"radius": 1},
    "radius zero": {"radius": 0},
    "scale of int": {"scale": 2},
    "scale zero": {"scale": 0},
    "directions of double precision": {"query_directions": X.double(), "key_directions": X.double()},
    "rounded directions": {"query_directions": with_row(3, [1.0 + 1e-6, 0.0, 0.0])},
    "no bias": {"zonal": None, "key_log_weight": None, "radius": None},
    "degree 0": {"zonal": zeros(2, 1)},
    "wide value": {"value": zeros(2, 2, 128, 128)},
}


@pytest.mark.parametrize("what", FINE)
def test_good_input(what):
    output, lse = sphere_attention(**{**GOOD, **FINE[what]})
    assert output.dtype == lse.dtype == torch.float32
    assert output.isfinite().all() and lse.isfinite().all()


@pytest.mark.parametrize("radius", [math.pi, 3.2, 100, INF])
def test_a_radius_of_pi_and_more_keeps_every_key(radius):
    everything = {**GOOD, "query_directions": -X, "radius": None}  # each query has its antipode among the keys
    for found, expected in zip(
        sphere_attention(**{**everything, "radius": radius}), sphere_attention(**everything), strict=True
    ):
        assert torch.equal(found, expected)


def test_directions_are_looked_at_again_after_a_change():
    directions = X.clone()
    sphere_attention(**{**GOOD, "query_directions": directions})
    directions[9] *= 3
    with pytest.raises(ValueError, match="query_directions: expected unit vectors, got one of length 3 at 9"):
        sphere_attention(**{**GOOD, "query_directions": directions})
