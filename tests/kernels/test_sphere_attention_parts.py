"""What sphere_attention's Triton kernels are made of, one by one: columns, lists of tiles, rounding, pieces of rows.

Runs where Triton interprets its kernels: see test_interpreted_attention.py.
"""

import pytest
import torch
from torch.nn.functional import normalize

from evoworld.geometry import Panorama
from evoworld.ops.compact_order import compact_order
from evoworld.ops.library import triton_interprets
from evoworld.reference.sphere_attention import chord2, legendre, max_chord2
from evoworld.reference.sphere_attention import sphere_attention as reference
from evoworld.testing_attention import ATTENTION_CASES

triton = pytest.importorskip("triton", reason="triton is not installed; it comes with torch on GPU machines")

import triton.language as tl  # noqa: E402
from evoworld.kernels.matmul import narrow  # noqa: E402 - it imports triton

pytestmark = pytest.mark.skipif(not triton_interprets(), reason="TRITON_INTERPRET is not 1")
SCALE = 0.125


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


@triton.jit
def narrow_kernel(source, target, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(target + place, narrow(tl.load(source + place), target.dtype.element_ty))


def directions(count, draw):
    return normalize(torch.randn(count, 3, generator=draw), dim=-1)


@pytest.mark.parametrize(("exact", "error"), [(False, 1e-3), (True, 3e-5)], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_columns_hold_the_bias(degree, exact, error, draw):
    """At kappa = 50, the worst pair of a million; keys and queries in another order than their places'."""
    from evoworld.kernels.sphere_attention_columns import columns_of, key_places, query_places

    x, y = directions(900, draw), directions(1100, draw)
    query_order, key_order = torch.randperm(900, generator=draw).int(), torch.randperm(1100, generator=draw).int()
    zonal = torch.tensor([[3.0, 50.0, 0.0, 0.0], [1.0, -20.0, 20.0, -10.0]])[:, : degree + 1].contiguous()
    log_weight = 10 * torch.randn(1100, generator=draw)
    columns = columns_of(zonal, log_weight, exact)
    queries = query_places(x, query_order, zonal, SCALE, columns, True)
    keys = key_places(y, key_order, log_weight, SCALE, columns, True)
    found = SCALE * (queries.columns.double() @ keys.columns.double().mT)[:, :900, :1100]

    polynomials = legendre(x.double() @ y.double().T, degree)[1:]
    truth = log_weight.double() + sum(a[:, None, None] * p for a, p in zip(zonal[:, 1:].T.double(), polynomials))
    truth = truth.expand(2, 900, 1100)[:, query_order.long()][..., key_order.long()]
    assert (found - truth).abs().max() < error
    assert torch.equal(queries.directions[:, :900], x[query_order.long()].T)


@pytest.mark.parametrize("exact", [False, True])
def test_masked_keys_and_places_without_a_token(exact, draw):
    from evoworld.kernels.sphere_attention_columns import EMPTY, columns_of, key_places, query_places

    log_weight = torch.tensor([0.5, -torch.inf, -3.0e38, 2.0])
    columns = columns_of(None, log_weight, exact)
    keys = key_places(directions(4, draw), None, log_weight, SCALE, columns, True)
    queries = query_places(directions(4, draw), None, None, SCALE, columns, False)
    logits = SCALE * (queries.columns[0, 0].double() @ keys.columns[0].double().T)
    assert len(logits) == 128 and logits.isfinite().all()
    counts = torch.arange(128) % 3 == 0
    counts[4:] = False
    assert torch.equal(logits > EMPTY.value, counts)
    assert (logits[counts] - log_weight[counts[:4]]).abs().max() < 1e-6
    assert (keys.directions[:, 4:] > 100).all()


@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("exact", [False, True])
def test_features_give_back_the_polynomials(degree, exact, draw):
    """What the gradient of zonal is made of: features of a query times columns of a key, by degree."""
    from evoworld.kernels.sphere_attention_columns import columns_of, key_places, query_places

    x, y = directions(50, draw), directions(60, draw)
    zonal = torch.zeros(2, degree + 1)
    columns = columns_of(zonal, None, exact)
    features = query_places(x, None, zonal, SCALE, columns, False, True).features[:50].double()
    keys = key_places(y, None, None, SCALE, columns, False).columns[0, :60].double()
    degrees = torch.tensor(columns.degrees)
    for l, truth in enumerate(legendre(x.double() @ y.double().T, degree)[1:], 1):  # noqa: E741
        found = features[:, degrees == l] @ keys[:, degrees == l].T
        assert (found - truth).abs().max() < 3e-5


def test_a_call_without_bias_takes_no_columns():
    from evoworld.kernels.sphere_attention_columns import columns_of

    zonal = torch.zeros(2, 4)
    assert [columns_of(zonal[:, : k + 1], torch.zeros(3), False).width for k in range(4)] == [16, 16, 32, 48]
    assert [columns_of(zonal[:, : k + 1], torch.zeros(3), True).width for k in range(4)] == [16] * 4
    assert columns_of(None, None, False).width == columns_of(zonal[:, :1], None, True).width == 0


@pytest.mark.parametrize("radius", [0.05, 0.5, 1.5, 3.0])
@pytest.mark.parametrize("blocks", [(64, 32), (128, 128)])
def test_tiles_that_are_met_hold_every_pair_within_the_radius(radius, blocks, draw):
    from evoworld.kernels.sphere_attention_columns import columns_of, key_places, query_places
    from evoworld.kernels.sphere_attention_tiles import tile_lists

    x, y = directions(1000, draw), Panorama(24, 48).directions().view(-1, 3)
    columns = columns_of(None, None, True)
    queries = query_places(x, compact_order(x), None, 1.0, columns, True)
    keys = key_places(y, compact_order(y), None, 1.0, columns, True)
    limit = max_chord2(radius)
    near = chord2(queries.directions[:, :1000].T, keys.directions[:, : len(y)].T) <= limit
    for rows, others, block, other_block, pairs in (
        (queries, keys, *blocks, near),
        (keys, queries, *reversed(blocks), near.T),
    ):
        lists = tile_lists(rows, block, others, other_block, limit)
        assert lists.tiles.shape == (-(-rows.num_tokens // block), -(-others.num_tokens // other_block))
        for tile, (found, inside, met) in enumerate(zip(lists.tiles, lists.inside, lists.met, strict=True)):
            sure, maybe = found[:inside].tolist(), found[inside:met].tolist()
            assert sure == sorted(sure) and maybe == sorted(maybe) and not set(sure) & set(maybe)
            for other in range(lists.width):
                part = pairs[tile * block : (tile + 1) * block, other * other_block : (other + 1) * other_block]
                assert other in sure + maybe or not part.any()
                assert other not in sure or (part.all() and part.shape == (block, other_block))
        if blocks == (64, 32) and radius == 0.5:
            assert lists.met.sum() < 0.7 * lists.tiles.numel()
        if blocks == (64, 32) and radius == 3.0:
            assert lists.inside.sum() > 0.15 * lists.tiles.numel()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_numbers_are_rounded_to_the_nearest(dtype, draw):
    numbers = torch.randn(1024, generator=draw) * 2.0 ** torch.randint(-9, 9, (1024,), generator=draw)
    numbers[:4] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf])
    found = torch.empty(1024, dtype=dtype)
    narrow_kernel[(1,)](numbers, found, BLOCK=1024)
    assert torch.equal(found, numbers.to(dtype))


def test_rows_are_cut_into_powers_of_two():
    from evoworld.kernels.sphere_attention_configs import pieces

    assert (pieces(80), pieces(112), pieces(17), pieces(128)) == ((64, 16), (64, 32, 16), (32,), (128,))
    for width in range(16, 129):
        assert 0 <= sum(pieces(width)) - width < 16


def compare(case):
    """Output and lse of the raw op against the float64 reference, by the rounding of the case's dtype."""
    from evoworld.kernels.sphere_attention import sphere_attention

    given = case.build()
    inputs = {name: x.double() if torch.is_tensor(x) else x for name, x in given.items()}
    truth = reference(**inputs)
    same = reference(**given)
    orders = [None, None]
    if case.radius is not None:
        orders = [compact_order(given[f"{side}_directions"]) for side in ("query", "key")]
    names = ("query", "key", "value", "query_directions", "key_directions", "zonal", "key_log_weight")
    scale = case.width**-0.5 if case.scale is None else case.scale
    found = sphere_attention(*(given[name] for name in names), *orders, given["radius"], scale)
    for mine, theirs, exact in zip(found, same, truth, strict=True):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
        finite = exact.isfinite()
        assert torch.equal(mine.isfinite(), finite)
        allowed = 2 * (theirs - exact)[finite].abs().max() + 8 * torch.finfo(case.dtype).eps * exact[finite].abs().max()
        assert (mine - exact)[finite].abs().max() <= allowed


@pytest.mark.parametrize("tile", [(32, 16), (128, 64), (128, 128)])
def test_tiles_of_a_gpu(monkeypatch, tile):
    from evoworld.kernels import sphere_attention_configs as configs

    monkeypatch.setattr(configs, "_INTERPRETED", configs.Config(*tile, 4, 1))
    for name in ("many_keys", "many_queries", "radius_bfloat16", "radius_of_another_size", "width_72_80"):
        compare(ATTENTION_CASES[name])


@pytest.mark.parametrize("name", ["no_bias", "radius", "bfloat16_64"])
def test_without_columns(name):
    """Then the last keys' tile has a mask of its own, and a radius masks places without a key."""
    from dataclasses import replace

    compare(replace(ATTENTION_CASES[name], degree=None, log_weight=None, name=f"{name}_plain"))


def test_the_memory_of_the_output_is_by_token():
    from evoworld.kernels.sphere_attention import sphere_attention

    rows, line = torch.randn(2, 3, 5, 16), torch.eye(3)[torch.arange(5) % 3]
    output, lse = sphere_attention(rows, rows, rows, line, line, None, None, None, None, None, 1.0)
    assert output.transpose(1, 2).is_contiguous() and lse.is_contiguous()


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(1, 2, 5, 16).double(), "query: expected torch.float32 or torch.float16 or torch.bfloat16"),
        (1, torch.zeros(1, 2, 6, 17), r"key: expected shape \[1, 2, 6, 16\], got \[1, 2, 6, 17\]"),
        (2, torch.zeros(1, 2, 6, 16).half(), "value: expected torch.float32 .* as query, got torch.float16"),
        (2, torch.zeros(1, 2, 16, 6).mT, "value: expected contiguous rows, got strides"),
        (3, torch.zeros(6, 3), r"query_directions: expected shape \[5, 3\], got \[6, 3\]"),
        (5, torch.zeros(3, 2), r"zonal: expected shape \[2, 'any'\], got \[3, 2\]"),
        (6, torch.zeros(6).double(), "key_log_weight: expected torch.float32, got torch.float64"),
    ],
)
def test_bad_raw_arguments(index, value, message):
    from evoworld.kernels.sphere_attention import sphere_attention

    query, key = torch.zeros(1, 2, 5, 16), torch.zeros(1, 2, 6, 16)
    arguments = [query, key, key, torch.zeros(5, 3), torch.zeros(6, 3), None, None, None, None, None, 1.0]
    arguments[index] = value
    with pytest.raises(ValueError, match=message):
        sphere_attention(*arguments)
