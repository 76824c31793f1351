"""The rule by which backends are judged catches what it should, and its cases are what they say."""

import pytest
import torch

import evoworld
from evoworld import reference
from evoworld.testing import RENDER_CASES, SCATTER_CASES, check_against_reference


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


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_case_is_built_on_the_cpu_whichever_backend_is_asked_for(name):
    with evoworld.backend(name):
        for case in (SCATTER_CASES["patch"], RENDER_CASES["jitter"]):
            assert case.build()["grid"].directory.device.type == "cpu"
