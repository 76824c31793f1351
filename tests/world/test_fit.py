"""The gradient refinement: it renders what it was fitted to better, and new views too."""

import math

import pytest
import torch

from evoworld.geometry import Panorama, look_at
from evoworld.world import Memory
from evoworld.world.fit import fit

CAMERA = Panorama(48, 96)
HALF_SIZE = torch.tensor([1.5, 1.2, 1.0])  # metres, of a box around the origin


def box_frame(x, y):
    """A panorama inside the box: exact ranges, and a texture too fine for the voxels to hold without blur."""
    pose = look_at(torch.tensor([x, y, 0.1]), torch.tensor([x + 1.0, y + 0.5, 0.1]))
    origins, directions = CAMERA.rays(pose)
    distance = ((directions.sign() * HALF_SIZE - origins) / directions).amin(-1)
    points = origins + distance[:, None] * directions
    image = 0.5 + 0.4 * torch.sin(12 * points + torch.tensor([0.0, 1.0, 2.0]))
    return image.view(48, 96, 3), distance.view(48, 96), pose, CAMERA


def remembered(frames):
    memory = Memory(0.1, feature_dim=3)
    for frame in frames:
        memory.observe(*frame)
    return memory


def colour_error(memory, frame):
    return (memory.query(frame[3], frame[2]).features - frame[0]).square().mean().item()


def depth_error(memory, frame):
    return ((memory.query(frame[3], frame[2]).depth - frame[1]).abs() / frame[1]).mean().item()


@pytest.fixture(scope="module")
def frames():
    angles = [i / 8 * 2 * math.pi for i in range(8)]
    return [box_frame(0.5 * math.cos(angle), 0.4 * math.sin(angle)) for angle in angles]


def test_new_views_gain_in_colour_and_depth(frames):
    memory, new = remembered(frames), box_frame(0.1, -0.2)
    before = colour_error(memory, new), depth_error(memory, new)
    losses = []
    memory.fit(frames, 12, lambda step, loss: losses.append((step, loss)))
    assert [step for step, _ in losses] == list(range(1, 13))
    assert sum(loss for _, loss in losses[-4:]) < sum(loss for _, loss in losses[:4])
    assert colour_error(memory, new) < 0.8 * before[0]  # measured: 0.38 of it
    assert depth_error(memory, new) < before[1]


def test_a_fit_is_repeatable_and_leaves_weights_alone(frames):
    memories = [remembered(frames) for _ in range(2)]
    weights = [level.weight.clone() for level in memories[0].levels]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the backward of volume_render has a fixed order then
    try:
        for memory in memories:
            memory.fit(frames, 2)
    finally:
        torch.set_num_threads(threads)
    for a, b, weight in zip(memories[0].levels, memories[1].levels, weights, strict=True):
        assert torch.equal(a.sums, b.sums) and torch.equal(a.distance_sum, b.distance_sum)
        assert torch.equal(a.weight, weight)


def test_a_fitted_memory_goes_on_observing(frames):
    memory = remembered(frames[:4])
    memory.fit(frames[:4], 2)
    for frame in frames[4:]:
        memory.observe(*frame)
    view = memory.query(CAMERA, frames[5][2])
    assert torch.isfinite(view.features).all() and view.visibility.min() > 0.5


def test_frames_with_sky_leave_everything_finite(frames):
    open_frames = [(image, depth.clone(), pose, camera) for image, depth, pose, camera in frames[:4]]
    for _, depth, _, _ in open_frames:
        depth[:16] = 0.0
    memory = remembered(open_frames)
    before = depth_error(memory, frames[0])
    memory.fit(open_frames, 4)
    for level in memory.levels:
        assert torch.isfinite(level.sums).all() and torch.isfinite(level.distance_sum).all()
    assert torch.isfinite(memory.query(CAMERA, frames[0][2]).features).all()
    assert depth_error(memory, frames[0]) < 1.1 * before


def test_bad_input_is_refused(frames):
    memory = remembered(frames[:1])
    with pytest.raises(ValueError, match="frames: expected at least one"):
        fit(memory, [], 1)
    with pytest.raises(ValueError, match="steps: expected 0 or more, got -1"):
        fit(memory, frames, -1)
    before = memory.levels[1].sums.clone()
    fit(memory, frames[:1], 0)
    assert torch.allclose(memory.levels[1].sums, before)
