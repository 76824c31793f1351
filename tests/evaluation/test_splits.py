"""The hold-out split."""

import pytest

from evoworld.evaluation import split_frames


@pytest.mark.parametrize(("num_frames", "hold_out"), [(32, 8), (33, 8), (5, 2), (7, 3), (1, 2), (3, 8)])
def test_every_frame_is_on_one_side_and_the_held_out_ones_lie_between_observed_ones(num_frames, hold_out):
    observed, held_out = split_frames(num_frames, hold_out)
    assert sorted(observed + held_out) == list(range(num_frames))
    assert observed[0] == 0
    assert all(index - 1 in observed for index in held_out)
    assert all(index % hold_out == hold_out // 2 for index in held_out)


def test_eight_of_thirty_two():
    assert split_frames(32, 8)[1] == [4, 12, 20, 28]


@pytest.mark.parametrize("hold_out", [0, None])
def test_nothing_held_out(hold_out):
    assert split_frames(4, hold_out) == ([0, 1, 2, 3], [])


@pytest.mark.parametrize(
    ("num_frames", "hold_out", "name"), [(4, 1, "hold_out"), (4, -8, "hold_out"), (-1, 8, "num_frames")]
)
def test_bad_input(num_frames, hold_out, name):
    with pytest.raises(ValueError, match=name):
        split_frames(num_frames, hold_out)
