"""Conditions for each thing the model is asked for."""

import math
from dataclasses import replace

import pytest
import torch
from box_world import CAMERA, box_frame

from evoworld.apps.trajectories import level_pose
from evoworld.geometry import Panorama, Pinhole
from evoworld.world import Memory
from evoworld.world.condition import Condition
from evoworld.world.conditions import (
    continuation,
    fit_panorama,
    lay_photo,
    relative_positions,
    render_memory,
    stack_conditions,
    text_condition,
    with_known,
)
from evoworld.world.first_write import first_write_config, observe_first
from evoworld.world.rgbd import decode_rgbd, encode_rgbd

NO_TEXT = torch.zeros(1, 0, 384), torch.zeros(1, 0, dtype=torch.bool)


def poses(*places, yaw=0.7):
    return level_pose(torch.tensor(places), torch.full((len(places),), yaw))


STEP = poses((0.0, 0.0, 0.0), (0.1, 0.05, 0.0))


def remembered(pose):
    memory, frame = Memory(config=first_write_config(0.1)), box_frame(pose)
    observe_first(memory, frame.image, frame.depth, pose, CAMERA)
    return memory, frame


def test_positions_are_in_the_axes_of_the_first_camera():
    """Yaw 90 degrees looks along +y: a step there is forward, one along +x to the right, one up is -y."""
    walk = poses((1.0, 2.0, 3.0), (1.0, 2.5, 3.0), (1.25, 2.0, 3.0), (1.0, 2.0, 3.125), yaw=math.pi / 2)
    expected = torch.tensor([[0.0, 0, 0], [0, 0, 0.5], [0.25, 0, 0], [0, -0.125, 0]])
    assert torch.allclose(relative_positions(walk), expected, atol=1e-6)


def test_words_alone():
    text = torch.rand(1, 5, 384), torch.ones(1, 5, dtype=torch.bool)
    condition = text_condition(STEP, 16, text)
    assert condition.known.shape == (1, 2, 16, 32, 4) and not condition.known_mask.any()
    assert not condition.visibility.any() and condition.text is text[0] and condition.text_mask is text[1]


def test_a_panorama_is_known_in_colour_and_its_depth_is_filled_in():
    frame = box_frame(STEP[0])
    condition = with_known(text_condition(STEP, 32, NO_TEXT), 0, frame.image)
    filled = condition.filled()
    assert torch.allclose(filled[0, 0, ..., :3], 2 * frame.image - 1, atol=1e-6)
    assert (filled[0, :, ..., 3] == 0).all() and (condition.known_mask[0, 1] == 0).all()
    both = with_known(condition, 0, frame.image, depth=frame.depth)
    assert torch.allclose(decode_rgbd(both.filled()[0, 0])[1], frame.depth, rtol=1e-4)


def test_a_photo_lies_where_it_was_taken():
    """What the photograph shows is what the panorama shows there, colours and ranges."""
    camera = Pinhole.from_fov(96, 128, math.radians(80))
    photo, panorama = box_frame(STEP[0], camera), box_frame(STEP[0])
    image, mask, depth = lay_photo(photo.image, 80.0, 32, photo.depth)
    seen = mask > 0
    assert 0.05 < seen.float().mean() < 0.2 and seen[16, 32] and not seen[16, 0]
    assert (image - panorama.image)[seen].abs().mean() < 0.02
    assert ((depth - panorama.depth).abs() / panorama.depth)[seen].mean() < 0.02
    condition = with_known(text_condition(STEP, 32, NO_TEXT), 0, image, mask, depth)
    assert torch.equal(condition.known_mask[0, 0, ..., 0] > 0, seen)
    assert torch.allclose(condition.filled()[0, 0][seen], encode_rgbd(image, depth)[seen])


def test_a_large_photo_is_averaged_not_sampled():
    image, mask, _ = lay_photo(torch.rand(512, 512, 3), 90.0, 16)
    assert (image[mask > 0] - 0.5).abs().max() < 0.15


@pytest.mark.parametrize("fov", [0.0, -1.0, 180.0, math.nan])
def test_a_field_of_view_that_no_lens_has_is_refused(fov):
    with pytest.raises(ValueError, match="fov: expected degrees"):
        lay_photo(torch.rand(8, 8, 3), fov, 16)


def test_a_panorama_is_fitted_by_area_and_its_depth_by_choice():
    image = torch.rand(32, 64, 3)
    small = fit_panorama(image, 8)
    assert torch.allclose(small, image.unflatten(1, (16, 4)).unflatten(0, (8, 4)).mean((1, 3)), atol=1e-6)
    assert fit_panorama(image, 64).shape == (64, 128, 3) and torch.equal(fit_panorama(image, 32), image)
    depth = torch.tensor([1.0, 9.0]).repeat(32, 32)
    assert set(fit_panorama(depth, 8, "nearest").unique().tolist()) <= {1.0, 9.0}
    with pytest.raises(ValueError, match="twice as wide"):
        fit_panorama(torch.rand(32, 32, 3), 8)


def test_what_the_memory_shows_is_what_was_written():
    memory, frame = remembered(STEP[0])
    rgbd, visibility = render_memory(memory, STEP, CAMERA)
    assert rgbd.shape == (2, 32, 64, 4) and visibility.shape == (2, 32, 64)
    assert torch.allclose(rgbd[0], encode_rgbd(frame.image, frame.depth), atol=5e-3) and (visibility[0] == 1).all()


def test_going_on_shows_what_is_remembered():
    memory, frame = remembered(STEP[0])
    condition = continuation(memory, STEP, 32, NO_TEXT)
    assert torch.allclose(decode_rgbd(condition.filled()[0, 0])[0], frame.image, atol=5e-3)
    there = box_frame(STEP[1])
    assert (decode_rgbd(condition.filled()[0, 1])[0] - there.image).abs().mean() < 0.02
    assert not condition.without_memory().visibility.any()


def test_all_of_it_turns_with_the_camera():
    """Poses and memory seen from another yaw: the condition is rolled, positions and all."""
    memory, _ = remembered(STEP[0])
    columns = 8
    turned = poses((0.0, 0.0, 0.0), (0.1, 0.05, 0.0), yaw=0.7 + columns / 64 * 2 * math.pi)
    condition, other = (continuation(memory, p, 32, NO_TEXT) for p in (STEP, turned))
    rolled = condition.roll(columns)
    assert torch.allclose(rolled.position, other.position, atol=1e-5)
    assert ((rolled.memory - other.memory).abs().amax(-1) > 0.02).float().mean() < 0.02


def test_the_prediction_without_a_network_rolls_with_its_condition():
    memory, _ = remembered(STEP[0])
    condition = continuation(memory, STEP, 32, NO_TEXT)
    visibility = condition.visibility.clone()
    visibility[..., 10:40] = 0
    condition = replace(condition, visibility=visibility)
    assert torch.allclose(condition.roll(12).filled(), condition.filled().roll(12, -2), atol=1e-6)


def test_features_turn_with_their_directions():
    """They are of tokens: what varies slowly around the panorama is where it belongs after any turn."""
    condition = text_condition(STEP, 32, NO_TEXT)
    around = torch.arange(8) / 8 * 2 * math.pi
    wave = torch.stack((around.cos(), around.sin()), -1).expand(1, 2, 4, 8, 2)
    for columns in (0, 8, 3, -5, 61):
        turned = replace(condition, features=wave).roll(columns).features
        angle = around - columns / 64 * 2 * math.pi
        expected = torch.stack((angle.cos(), angle.sin()), -1).expand_as(turned)
        exact = columns % 8 == 0
        assert torch.allclose(turned, expected, atol=1e-6 if exact else 0.09)  # 1 - cos(pi / 8) at most, halfway
        assert exact or torch.allclose(turned / turned.norm(dim=-1, keepdim=True), expected, atol=0.02)


def test_batches_keep_each_text():
    texts = [(torch.rand(1, n, 8), torch.ones(1, n, dtype=torch.bool)) for n in (0, 3, 1)]
    conditions = [text_condition(STEP, 16, text) for text in texts]
    batch = stack_conditions(conditions)
    assert isinstance(batch, Condition) and batch.known.shape == (3, 2, 16, 32, 4) and batch.features is None
    assert batch.text.shape == (3, 3, 8) and batch.text_mask.sum(1).tolist() == [0, 3, 1]
    assert torch.equal(batch.text[1], texts[1][0][0])


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("image", {"image": torch.zeros(16, 30, 3)}),
        ("mask", {"image": torch.zeros(16, 32, 3), "mask": torch.zeros(16, 1)}),
        ("depth", {"image": torch.zeros(16, 32, 3), "depth": torch.zeros(1, 32)}),
    ],
)
def test_what_is_known_must_have_the_size(name, given):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        with_known(text_condition(STEP, 16, NO_TEXT), 0, **given)


def test_a_panorama_of_another_size_can_be_asked_of_the_memory():
    memory, _ = remembered(STEP[0])
    rgbd, visibility = render_memory(memory, STEP[:1], Panorama(20, 40))
    assert rgbd.shape == (1, 20, 40, 4) and (visibility > 0).float().mean() > 0.95
