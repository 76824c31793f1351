"""What the op table does not reach of sphere_attention's backward: other tiles, each gradient alone, raw arguments.

Runs where Triton interprets its kernels: see test_interpreted_attention.py.
"""

from dataclasses import replace

import pytest
import torch

import evoworld
from evoworld.ops import sphere_attention
from evoworld.ops.compact_order import compact_order
from evoworld.ops.library import triton_interprets
from evoworld.reference.sphere_attention import sphere_attention as reference
from evoworld.testing import check_against_reference
from evoworld.testing_attention import ATTENTION_CASES

pytest.importorskip("triton", reason="triton is not installed; it comes with torch on GPU machines")

pytestmark = pytest.mark.skipif(not triton_interprets(), reason="TRITON_INTERPRET is not 1")
RADIUS = replace(ATTENTION_CASES["radius"], queries="6x12", keys="7x14", name="radius_of_few")
NAMES = ("query", "key", "value", "zonal", "key_log_weight")


def raw(case):
    """The arguments of the raw op behind the outputs and their gradients, by name."""
    given = case.build()
    orders = (None, None)
    if case.radius is not None:
        orders = tuple(compact_order(given[side]) for side in ("query_directions", "key_directions"))
    given["scale"] = case.width**-0.5 if case.scale is None else case.scale
    del given["return_lse"]
    names = ("query", "key", "value", "query_directions", "key_directions", "zonal", "key_log_weight")
    return {name: given[name] for name in names} | {
        "query_order": orders[0],
        "key_order": orders[1],
        "radius": given["radius"],
        "scale": given["scale"],
    }


def backward(d_output, d_lse, output, lse, arguments, wanted=(True, True, True, True)):
    from evoworld.kernels.sphere_attention_backward import sphere_attention_backward

    return sphere_attention_backward(d_output, d_lse, output, lse, *arguments.values(), *wanted)


def by_reference(arguments, draw):
    """(d_output, d_lse, output, lse), and the gradients in float64."""
    leaves = {name: None if arguments[name] is None else arguments[name].double() for name in NAMES}
    wanted = [leaf.requires_grad_() for leaf in leaves.values() if leaf is not None]
    places = [arguments[name].double() for name in ("query_directions", "key_directions")]
    outputs = reference(
        *(leaves[name] for name in NAMES[:3]), *places, *(leaves[name] for name in NAMES[3:]),
        arguments["radius"], arguments["scale"], True,
    )  # fmt: skip
    upstream = [torch.randn(x.shape, generator=draw, dtype=x.dtype) for x in outputs]
    truth = torch.autograd.grad(outputs, wanted, upstream)
    rows, numbers = arguments["query"].dtype, torch.float32
    kinds = zip((*upstream, *outputs), (rows, numbers, rows, numbers), strict=True)
    return [x.detach().to(dtype) for x, dtype in kinds], truth


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("tiles", [(16, 32), (64, 16), (128, 128)], ids=str)
@pytest.mark.parametrize("name", ["radius_of_few", "width_72_80", "no_bias", "degree_3", "one_query"])
def test_tiles_of_a_gpu(monkeypatch, tiles, name):
    from evoworld.kernels import sphere_attention_backward_configs as configs

    monkeypatch.setattr(configs, "_INTERPRETED", configs.Config(*tiles, 4, 1))
    with evoworld.backend("triton"):
        check_against_reference(sphere_attention, RADIUS if name == RADIUS.name else ATTENTION_CASES[name])


@pytest.mark.parametrize("case", [ATTENTION_CASES["bfloat16_40"], RADIUS], ids=lambda case: case.name)
def test_each_gradient_alone_is_the_same(case, draw):
    arguments = raw(case)
    given, _ = by_reference(arguments, draw)
    together = backward(*given, arguments)
    for i in range(5):
        wanted = [i == 0, i in (1, 2), i == 3, i == 4]
        alone = backward(*given, arguments, wanted)
        expected = [wanted[0], wanted[1], wanted[1], wanted[2], wanted[3]]
        for one, all_of_them, want in zip(alone, together, expected, strict=True):
            assert torch.equal(one, all_of_them) if want else one.shape == (0,)


def test_more_batches_than_a_grid_has(monkeypatch, draw):
    from evoworld.kernels import sphere_attention_backward as module

    arguments = raw(replace(RADIUS, batch=3, name="batches"))
    given, _ = by_reference(arguments, draw)
    expected = backward(*given, arguments)
    monkeypatch.setattr(module, "_MAX_GRID", 2)
    assert all(map(torch.equal, backward(*given, arguments), expected))


def test_strength_of_degree_0_moves_lse_alone(draw):
    arguments = raw(replace(ATTENTION_CASES["radius_leaves_some_alone"], degree=3, name="alone"))
    given, truth = by_reference(arguments, draw)
    d_lse, lse = given[1], given[3]
    alone = lse == -torch.inf
    assert alone.any() and not alone.all()
    d_zonal = backward(*given, arguments)[3]
    assert torch.equal(d_zonal[:, 0], d_lse.masked_fill(alone, 0).sum((0, 2)))
    assert (d_zonal - truth[3]).abs().max() < 1e-5 * truth[3].abs().max()


def test_what_flows_into_queries_without_keys_stays_there(draw):
    arguments = raw(ATTENTION_CASES["radius_leaves_some_alone"])
    given, _ = by_reference(arguments, draw)
    expected = backward(*given, arguments)
    given[1] = given[1].masked_fill(given[3] == -torch.inf, torch.nan)
    found = backward(*given, arguments)
    assert all(map(torch.equal, found, expected)) and all(x.isfinite().all() for x in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["no_bias", "small"])
def test_logits_far_below_zero(name, dtype, draw):
    """Tiles are not full: an exponential of a key that is not there, with lse at -290, would be infinite."""
    arguments = raw(replace(ATTENTION_CASES[name], dtype=dtype, name=f"{name}_below_zero"))
    query, key = arguments["query"], arguments["key"]
    arguments["query"], arguments["key"] = query / 8 + 8.5, key / 8 - 8.5
    given, truth = by_reference(arguments, draw)
    assert given[3].max() < -200
    wanted = (True, True, arguments["zonal"] is not None, arguments["key_log_weight"] is not None)
    found = [x for x in backward(*given, arguments, wanted) if x.numel()]
    tolerance = 4e-2 if dtype == torch.bfloat16 else 1e-4
    for one, expected in zip(found, truth, strict=True):
        assert (one.double() - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(1, 2, 37, 17), r"d_output: expected shape \[1, 2, 37, 16\], got \[1, 2, 37, 17\]"),
        (0, torch.zeros(1, 2, 37, 16).double(), "d_output: expected torch.float32 or .* as query, got torch.float64"),
        (0, torch.zeros(1, 2, 16, 37).mT, "d_output: expected contiguous rows, got strides"),
        (1, torch.zeros(1, 2, 36), r"d_lse: expected shape \[1, 2, 37\], got \[1, 2, 36\]"),
        (3, torch.zeros(1, 2, 37).half(), "lse: expected torch.float32, got torch.float16"),
    ],
)
def test_bad_raw_arguments(index, value, message, draw):
    arguments = raw(ATTENTION_CASES["small"])
    given, _ = by_reference(arguments, draw)
    given[index] = value
    with pytest.raises(ValueError, match=message):
        backward(*given, arguments)
