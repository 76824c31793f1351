"""Holes are where they are said to be, and what fills them is judged there only."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_world import box_walk, tiny_model

from evoworld.evaluation.holes import NUM_FRAMES, WEDGE, fill, make_hole, shown_to
from evoworld.geometry import Panorama

LINE = [[-0.5 + 0.1 * i, 0.0, 0.0] for i in range(10)]


@pytest.fixture(scope="module")
def walk():
    return box_walk(LINE, height=32)


def test_a_wedge_is_missing_and_little_else(walk):
    hole = make_hole("wedge", walk)
    assert hole.condition.memory.shape == (1, NUM_FRAMES, 32, 64, 4) and len(hole.truth) == NUM_FRAMES
    empty = hole.hole.all(1)[0]  # columns
    columns = round(64 * WEDGE / 360)
    assert int(empty.sum()) == columns
    runs = (empty != empty.roll(1)).sum()
    assert int(runs) == 2, "one wedge, across the seam or not"
    assert hole.hole[:, :, ~empty].float().mean() < 0.25
    assert not torch.equal(empty, make_hole("wedge", replace(walk, name="other")).hole.all(1)[0])


def test_a_new_room_is_what_the_first_frame_did_not_see():
    """A wall with a door: behind it the first frame sees little."""
    walk = box_walk(LINE)
    hole = make_hole("new room", walk)
    assert hole.hole.float().mean() < 0.5
    far = walk.select([0, *[9] * 9])  # the same frames from one place: all seen but for the first
    assert make_hole("new room", far).condition.position.abs().max() == 0


def test_a_perfect_filling_is_perfect_and_only_the_hole_counts(walk):
    from evoworld.world.rgbd import encode_rgbd

    hole = make_hole("wedge", walk)
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


def test_all_pixels_count_for_the_other_number(walk):
    hole = make_hole("wedge", walk)
    none = replace(hole, hole=torch.zeros_like(hole.hole))
    alone, seen = fill(hole, None, seed=0), fill(none, None, seed=0)
    assert alone.delta < alone.delta_all < 1 and seen.delta_all == alone.delta_all and math.isnan(seen.delta)


def test_a_model_fills_it_with_its_own_words():
    model, bare = tiny_model(), make_hole("wedge", box_walk(LINE), num_frames=2)
    asked = []
    model.encode_text = lambda prompts: asked.append(prompts) or (torch.ones(1, 3, 384), torch.ones(1, 3).bool())
    hole = shown_to(bare, model)
    assert asked == [["a box"]] and hole.condition.text.shape == (1, 3, 384)
    first, again, other = (fill(hole, model, seed, steps=2) for seed in (0, 0, 1))
    assert torch.equal(first.image, again.image) and not torch.equal(first.image, other.image)
    assert math.isfinite(first.psnr)


def test_the_hole_is_the_same_for_all(walk):
    bare = make_hole("wedge", walk, num_frames=2)
    assert shown_to(bare, None) is bare
    hole = shown_to(bare, tiny_model())
    assert torch.equal(hole.hole, bare.hole)
    assert torch.equal(hole.condition.visibility, bare.condition.visibility) and bare.condition.visibility.max() > 0


def test_a_model_without_memory_is_shown_none():
    bare, model = make_hole("wedge", box_walk(LINE), num_frames=2), tiny_model(learned_memory=True)
    assert shown_to(bare, model).condition.features.abs().max() > 0
    model.config = SimpleNamespace(**vars(model.config) | {"uses_memory": False})
    hole = shown_to(bare, model)
    assert hole.condition.visibility.max() == 0 and hole.condition.features.abs().max() == 0
    assert torch.equal(hole.hole, bare.hole) and not hole.hole.all(), "it is judged by the same pixels"


def test_the_learned_memory_has_not_seen_the_wedge_from_any_frame():
    model, walk, given = tiny_model(learned_memory=True), box_walk(LINE), []
    model.memory_encoder.register_forward_pre_hook(lambda module, arguments: given.append(arguments[:3]))
    bare = make_hole("wedge", walk, num_frames=4)
    hole = shown_to(bare, model)
    assert hole.condition.features.shape[:4] == (1, 4, 4, 8) and math.isfinite(fill(hole, model, 0, steps=1).psnr)
    ((rgbd, known, _),) = given
    assert rgbd.shape[1] == 3 and 0.3 < known.mean() < 0.9
    wedge = ~bare.kept
    assert wedge.sum() == round(32 * WEDGE / 360)
    origins, directions = Panorama(16, 32).rays(bare.observed.camera_to_world)
    points = (origins + bare.observed.depth.flatten(1)[..., None] * directions)[known[0].flatten(1) > 0.5]
    for pose in bare.truth.camera_to_world:
        x, _, z = ((points - pose[:3, 3]) @ pose[:3, :3]).unbind(-1)
        column = ((torch.atan2(x, z) / (2 * math.pi) + 0.5) * 32).long() % 32
        assert not wedge[column].any()


def test_bad_walks_are_refused():
    with pytest.raises(ValueError, match="at least 6 frames"):
        make_hole("wedge", box_walk(LINE[:5]))
    with pytest.raises(ValueError, match="kind"):
        make_hole("gap", box_walk(LINE))
