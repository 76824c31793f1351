"""Holes are where they are said to be, and what fills them is judged there only."""

import math

import pytest
import torch
from tiny_world import box_walk, tiny_model

from evoworld.evaluation.holes import NUM_FRAMES, WEDGE, fill, make_hole

LINE = [[-0.5 + 0.1 * i, 0.0, 0.0] for i in range(10)]


@pytest.fixture(scope="module")
def walk():
    return box_walk(LINE, height=32)


def test_a_wedge_is_missing_and_little_else(walk):
    hole = make_hole("wedge", walk, None, seed=0)
    assert hole.condition.memory.shape == (1, NUM_FRAMES, 32, 64, 4) and len(hole.truth) == NUM_FRAMES
    empty = hole.hole.all(1)[0]  # columns
    columns = round(64 * WEDGE / 360)
    assert int(empty.sum()) == columns
    runs = (empty != empty.roll(1)).sum()
    assert int(runs) == 2, "one wedge, across the seam or not"
    assert hole.hole[:, :, ~empty].float().mean() < 0.25
    assert not torch.equal(empty, make_hole("wedge", walk, None, seed=1).hole.all(1)[0])


def test_a_new_room_is_what_the_first_frame_did_not_see():
    """A wall with a door: behind it the first frame sees little."""
    walk = box_walk(LINE)
    hole = make_hole("new room", walk, None, seed=0)
    assert hole.hole.float().mean() < 0.5
    far = walk.select([0, *[9] * 9])  # the same frames from one place: all seen but for the first
    assert make_hole("new room", far, None, 0).condition.position.abs().max() == 0


def test_a_perfect_filling_is_perfect_and_only_the_hole_counts(walk):
    from evoworld.world.rgbd import encode_rgbd

    hole = make_hole("wedge", walk, None, seed=0)
    truth = encode_rgbd(hole.truth.image, hole.truth.depth)

    class Oracle:
        def __init__(self, rgbd):
            self.rgbd = rgbd

        def sample(self, condition, generator):
            return self.rgbd[None]

    perfect = fill(hole, Oracle(truth), seed=0)
    assert perfect.psnr > 100 and perfect.delta == 1.0 and perfect.abs_rel < 1e-4
    wrong_outside = torch.where(hole.hole[..., None], truth, -truth)
    assert fill(hole, Oracle(wrong_outside), seed=0).psnr == perfect.psnr
    wrong_inside = torch.where(hole.hole[..., None], -truth, truth)
    assert fill(hole, Oracle(wrong_inside), seed=0).psnr < 10
    alone = fill(hole, None, seed=0)
    assert 5 < alone.psnr < 40 and 0 < alone.delta < 1


def test_a_model_fills_it_with_its_own_words_and_segments():
    model = tiny_model()
    hole = make_hole("wedge", box_walk(LINE), model, seed=0)
    assert hole.condition.known.shape[1] == model.config.num_frames
    first, again, other = (fill(hole, model, seed, steps=1) for seed in (0, 0, 1))
    assert torch.equal(first.image, again.image) and not torch.equal(first.image, other.image)
    assert math.isfinite(first.psnr)


def test_the_learned_memory_has_not_seen_the_wedge_either():
    model, walk, given = tiny_model(learned_memory=True), box_walk([LINE[5]] * 10), []
    model.memory_encoder.register_forward_pre_hook(lambda module, arguments: given.append(arguments[1]))
    hole = make_hole("wedge", walk, model, seed=0)
    assert hole.condition.features.shape[:4] == (1, 2, 4, 8) and math.isfinite(fill(hole, model, 0, steps=1).psnr)
    (known,) = given  # [1, S, H, W]
    wedge = hole.hole.all(1).all(0)
    assert wedge.sum() == round(32 * WEDGE / 360)
    assert torch.equal(known[0] < 0.5, wedge.expand(known[0].shape))


def test_bad_walks_are_refused():
    with pytest.raises(ValueError, match="at least 6 frames"):
        make_hole("wedge", box_walk(LINE[:5]), None, 0)
    with pytest.raises(ValueError, match="kind"):
        make_hole("gap", box_walk(LINE), None, 0)
