"""The rule by which backends are judged catches what it should, and its cases are what they say."""

import pytest
import torch

import evoworld
from evoworld import reference
from evoworld.reference.sphere_attention import chord2, max_chord2
from evoworld.testing import RENDER_CASES, SCATTER_CASES, check_against_reference, evaluate
from evoworld.testing_attention import ATTENTION_CASES


def scaled(op, which, factor):
    """The op with one output off by a factor."""

    def wrong(**arguments):
        outputs = list(op(**arguments))
        outputs[which] = outputs[which] * factor
        return tuple(outputs)

    return wrong


@pytest.mark.parametrize("which", [0, 1])
def test_a_scatter_that_is_slightly_off_is_caught(which):
    with pytest.raises(AssertionError, match=f"voxel_scatter, case channels_3, {which}: off by"):
        check_against_reference(scaled(reference.voxel_scatter, which, 1 + 1e-5), SCATTER_CASES["channels_3"])


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_render_that_is_slightly_off_is_caught(which):
    with pytest.raises(AssertionError, match=f"volume_render, case channels_3, {which}: off by"):
        check_against_reference(scaled(reference.volume_render, which, 1 + 1e-5), RENDER_CASES["channels_3"])


@pytest.mark.parametrize(
    ("name", "which", "factor"), [("small", 0, 1e-5), ("small", 1, 1e-5), ("bfloat16_16", 1, 1e-3)]
)
def test_attention_that_is_slightly_off_is_caught(name, which, factor):
    check_against_reference(reference.sphere_attention, ATTENTION_CASES[name])
    with pytest.raises(AssertionError, match=f"sphere_attention, case {name}, {which}: off by"):
        check_against_reference(scaled(reference.sphere_attention, which, 1 + factor), ATTENTION_CASES[name])


@pytest.mark.parametrize("name", ["query", "key", "value", "zonal", "key_log_weight"])
def test_a_gradient_of_attention_that_is_slightly_off_is_caught(name):
    def wrong(**arguments):
        leaf = arguments[name]
        return reference.sphere_attention(**{**arguments, name: leaf + 1e-4 * (leaf - leaf.detach())})

    with pytest.raises(AssertionError, match=f"d_{name}: off by"):
        check_against_reference(wrong, ATTENTION_CASES["small"])


def test_attention_that_forgets_the_gradient_of_lse_is_caught():
    def wrong(**arguments):
        output, lse = reference.sphere_attention(**arguments)
        return output, lse.detach()

    with pytest.raises(AssertionError, match="d_query: off by"):
        check_against_reference(wrong, ATTENTION_CASES["small"])


def test_a_wrong_gradient_is_caught():
    def wrong(**arguments):
        return reference.volume_render(**{**arguments, "density": arguments["density"].detach() * 1.0})

    def no_origin_gradient(**arguments):
        arguments["origins"] = arguments["origins"].detach() + 0 * arguments["origins"]
        return reference.volume_render(**arguments)

    check_against_reference(reference.volume_render, RENDER_CASES["channels_3"])
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        check_against_reference(wrong, RENDER_CASES["channels_3"])
    with pytest.raises(AssertionError, match="d_origins: off by"):
        check_against_reference(no_origin_gradient, RENDER_CASES["channels_3"])


def test_nan_and_other_dtypes_are_caught():
    with pytest.raises(AssertionError, match="0: off by nan"):
        check_against_reference(scaled(reference.voxel_scatter, 0, float("nan")), SCATTER_CASES["channels_3"])

    def widened(**arguments):
        return tuple(x.double() for x in reference.voxel_scatter(**arguments))

    with pytest.raises(AssertionError, match=r"0: torch\.float64, not torch\.float32"):
        check_against_reference(widened, SCATTER_CASES["channels_3"])


def test_misaligned_features_stay_so():
    seen = []

    def op(**arguments):
        seen.append(arguments["features"].data_ptr() % 16)
        return reference.voxel_scatter(**arguments)

    check_against_reference(op, SCATTER_CASES["misaligned"])
    check_against_reference(op, SCATTER_CASES["misaligned_half"])
    check_against_reference(op, SCATTER_CASES["half_on_8_bytes"])
    check_against_reference(op, SCATTER_CASES["channels_4"])
    assert seen == [4, 2, 8, 0]


@pytest.mark.parametrize("case", [*SCATTER_CASES.values(), *RENDER_CASES.values()], ids=lambda c: f"{c.op}-{c.name}")
def test_cases_have_what_their_names_say(case):
    first, second = case.build(), case.build()
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(7), second[name].nan_to_num(7)), name
    expected = 52 if case.rays == "axes" else case.num_rays
    assert first["origins"].shape == first["directions"].shape == (expected, 3)
    assert first["features"].dtype == case.dtype
    assert (first["grid"].num_bricks == 0) == (case.grid == "empty")
    if case.rays == "axes":
        assert (first["directions"] == 0).any(-1).sum() > 30
    if case.rays == "image":
        repeated = (first["directions"][1:] == first["directions"][:-1]).all(-1).sum()
        assert repeated < case.num_rays // 10
        beside = (first["directions"][1:] * first["directions"][:-1]).sum(-1)  # cosines of pixels side by side
        in_row = torch.arange(1, case.num_rays) % case.image_width != 0
        assert beside[in_row].min() > 0.998 > beside[~in_row].max()
    assert (first["features"].data_ptr() % 16 != 0) == (case.misaligned > 0) or not first["features"].numel()
    if case.name == "several_pages":
        directory = first["grid"].directory
        assert (directory >= 0).sum() > 20 and (directory[1:-1, 1:-1, 1:-1] < 0).any()  # a room of pages, hollow inside
    if case.name == "negative_coordinates":
        assert first["grid"].brick_coordinates.max() < 0


SOME_ALONE, ALL_ALONE = (
    ("radius_leaves_some_alone", "radius_small"),
    ("radius_leaves_all_alone", "all_keys_masked", "no_keys"),
)


@pytest.mark.parametrize("name", ATTENTION_CASES)
def test_cases_of_attention_have_what_their_names_say(name):
    case = ATTENTION_CASES[name]
    first, second = case.build(), case.build()
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second[key]) and value.stride() == second[key].stride(), key
    x, y, radius = first["query_directions"], first["key_directions"], first["radius"]
    assert first["query"].shape == (case.batch, case.heads, len(x), case.width)
    assert first["value"].shape == (case.batch, case.heads, len(y), case.value_width)
    assert first["query"].dtype == first["key"].dtype == first["value"].dtype == case.dtype
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(len(x)))
    if case.batch and len(x):
        share = reference.sphere_attention(**first)[1].isneginf().float().mean().item()
        assert 0.1 < share < 0.9 if name in SOME_ALONE else share == float(name in ALL_ALONE)
    if radius is not None and len(x) and len(y) and "point" not in (case.queries, case.keys):
        distance = chord2(x.double(), y.double())
        assert (distance - max_chord2(radius)).abs().min() > 1e-5 * max_chord2(radius)
        assert 0 < (distance < max_chord2(radius)).double().mean() < 1
    is_aligned = first["query"].data_ptr() % 16 == 0
    assert is_aligned == (case.layout != "misaligned")
    if case.layout in ("projection", "expanded", "strided"):
        strides = {"projection": (1, case.heads * case.width), "expanded": (1, case.width), "strided": (2, None)}
        last, row = strides[case.layout]
        assert first["key"].stride(3) == last and first["key"].stride(2) in (row, 2 * (2 * case.width + 3))
        assert (first["key"].stride(1) == 0) == (case.layout == "expanded")


@pytest.mark.parametrize("name", ["projection", "expanded", "misaligned", "strided"])
def test_layouts_stay_as_they_are(name):
    seen, case = [], ATTENTION_CASES[name]

    def op(**arguments):
        seen.extend((arguments[key].stride(), arguments[key].data_ptr() % 16 == 0) for key in ("query", "value"))
        return reference.sphere_attention(**arguments)

    arguments = case.build()
    evaluate(op, arguments)
    assert seen == [(arguments[key].stride(), arguments[key].data_ptr() % 16 == 0) for key in ("query", "value")]


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_case_is_built_on_the_cpu_whichever_backend_is_asked_for(name):
    with evoworld.backend(name):
        for case in (SCATTER_CASES["patch"], RENDER_CASES["jitter"]):
            assert case.build()["grid"].directory.device.type == "cpu"
