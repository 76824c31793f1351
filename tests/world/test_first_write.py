"""Frames that are written once, and the points that keep them."""

import math

import pytest
import torch
from box_world import CAMERA, box_frame, box_walk

from evoworld.data.procedural import ProceduralWalks
from evoworld.geometry import Cubemap, Panorama, Pinhole
from evoworld.world import Memory, MemoryConfig
from evoworld.world.first_write import NEAR, first_write_config, observe_first
from evoworld.world.viewpoints import Viewpoints

INSIDE = (0.1, -0.1, 0.1)  # a place that no frame was taken from


def at(x=0.0, y=0.0, z=0.0):
    """A level pose, looking along +y."""
    return torch.tensor([[1.0, 0, 0, x], [0, 0, 1, y], [0, -1, 0, z], [0, 0, 0, 1]])


def write(memory, frame):
    return observe_first(memory, frame.image, frame.depth, frame.camera_to_world, frame.camera)


def room(num_frames=3, config=None):
    memory = Memory(config=first_write_config(0.1) if config is None else config)
    for pose in box_walk(9)[:num_frames]:
        write(memory, box_frame(pose))
    return memory


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def box():
    return room()


def test_a_pose_that_was_seen_is_shown_exactly_what_was_seen():
    """Noise, of which voxels would keep nothing; and a sky above."""
    memory, image, depth = Memory(config=first_write_config(0.1)), noise(32, 64, 3), 1 + noise(32, 64)
    depth[:6] = 0.0
    new = observe_first(memory, image, depth, at(), CAMERA)
    view = memory.query(CAMERA, at())
    assert new.all() and (view.visibility == 1).all()
    assert torch.allclose(view.features, image, atol=2e-3) and torch.allclose(view.depth, depth, atol=2e-3)
    assert (view.opacity[:6] == 0).all() and (view.opacity[6:] == 1).all()
    without_sky = memory.query(CAMERA, at(), background=False)
    assert (without_sky.visibility[:5] == 0).all() and (without_sky.visibility[7:] == 1).all()


@pytest.mark.parametrize(
    "camera",
    [CAMERA, Panorama(46, 92), Pinhole.from_fov(40, 60, math.radians(90)), Cubemap(24)],
    ids=lambda camera: type(camera).__name__ + str(camera.height),
)
def test_a_new_pose_shows_it_to_any_camera(box, camera):
    frame = box_frame(at(*INSIDE), camera)
    view = box.query(camera, at(*INSIDE))
    wanted = camera.range_from_depth(frame.depth)
    seen = view.visibility > 0
    assert seen.float().mean() > 0.94 and (camera != CAMERA or view.visibility.mean() > 0.97)
    assert (view.features - frame.image).abs().mean() < 0.015
    assert ((view.depth - wanted).abs() / wanted).mean() < 0.02


def test_the_first_to_write_a_place_wins():
    """Seen white, then black from near by: only what the first could not see is black."""
    memory = Memory(config=first_write_config(0.1))
    frame, other = box_frame(at()), box_frame(at(*INSIDE))
    first = observe_first(memory, torch.ones_like(frame.image), frame.depth, at(), CAMERA)
    second = observe_first(memory, torch.zeros_like(other.image), other.depth, at(*INSIDE), CAMERA)
    assert first.all() and second.float().mean() < 0.03
    assert (memory.query(CAMERA, at()).features > 0.99).float().mean() > 0.99
    assert memory.query(CAMERA, at(*INSIDE)).features.mean() > 0.95


def test_nothing_new_changes_nothing(box):
    before = [tensor.clone() for level in box.levels for tensor in level.tensors().values()]
    poses, points = box.poses.shape[0], box.surfels.rows.shape[0]
    frame = box_frame(box_walk(9)[0])
    assert not observe_first(box, torch.zeros_like(frame.image), frame.depth, frame.camera_to_world, CAMERA).any()
    after = [tensor for level in box.levels for tensor in level.tensors().values()]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert box.poses.shape[0] == poses and box.surfels.rows.shape[0] == points


def test_what_a_near_thing_hides_is_not_known():
    """A pillar before a wall: beside it, from elsewhere, lies what was not seen; it is written when it is."""
    memory, camera = Memory(config=first_write_config(0.1)), Panorama(64, 128)
    frame = box_frame(at(), camera)
    depth = frame.depth.clone()
    depth[:, 56:72] = 0.5
    observe_first(memory, frame.image, depth, at(), camera)
    aside = at(0.3, 0.0, 0.0)
    view = memory.query(camera, aside)
    assert 0.02 < (view.visibility < 0.5).float().mean() < 0.4
    new = write(memory, box_frame(aside, camera))
    assert new[view.visibility < 0.5].float().mean() > 0.6 and not new[view.visibility >= 0.5].any()


def test_a_point_in_free_space_is_left_out(box):
    """Wrongly near depth of a place that is not known to this camera, but seen through by earlier ones."""
    memory = Memory(config=first_write_config(0.1))
    frame = box_frame(at())
    depth = frame.depth.clone()
    hole = torch.zeros(32, 64, dtype=torch.bool)
    hole[10:20, 20:30] = True
    observe_first(memory, frame.image, depth, at(), CAMERA)
    memory.surfels.rows = memory.surfels.rows[~hole.flatten()]  # forgotten, but for the voxels' surface
    beside = box_frame(at(*INSIDE))
    unknown = memory.query(CAMERA, at(*INSIDE)).visibility < 0.5
    near = observe_first(memory, beside.image, 0.4 * beside.depth, at(*INSIDE), CAMERA)
    assert unknown.float().mean() > 0.02 and not near.any()
    right = write(memory, beside)
    assert right[unknown].float().mean() > 0.8


@pytest.fixture(scope="module")
def courtyard():
    """A walk around a courtyard under the sky."""
    return ProceduralWalks("train", height=32, num_frames=13, kinds=["loop"])[22]


def written(walk, outliers=0.0):
    """A memory of all frames but the last, and how many wrongly near points stand in it before the sky."""
    memory, generator, wrong = Memory(config=first_write_config(0.1)), torch.Generator().manual_seed(0), 0
    for k in range(len(walk) - 1):
        depth = walk.depth[k]
        if k:
            near = torch.rand(depth.shape, generator=generator) < outliers
            depth = torch.where(near, torch.where(depth > 0, 0.2 * depth, 2.0).clamp(max=2.0), depth)
        new = observe_first(memory, walk.image[k], depth, walk.camera_to_world[k], CAMERA)
        wrong += int((new & (depth > 0) & (walk.depth[k] == 0)).sum())
    return memory, wrong


def test_a_point_in_open_sky_is_left_out(courtyard):
    """Sky that a tree hid at first: nothing stands there, as earlier places saw past the tree."""
    assert (courtyard.depth == 0).float().mean() > 0.1
    _, wrong = written(courtyard, outliers=0.5)
    assert wrong <= 1


def test_a_closed_walk_under_the_sky_keeps_what_it_saw(courtyard, monkeypatch):
    """That points in free space are refused costs hardly any of those that stand there."""
    memory, _ = written(courtyard)
    view = memory.query(CAMERA, courtyard.camera_to_world[-1])
    assert view.visibility.mean() > 0.98
    assert -10 * math.log10((view.features - courtyard.image[-1]).square().mean()) > 33
    monkeypatch.setattr(Viewpoints, "saw_past", lambda self, points, margin: torch.zeros(len(points)).bool())
    unchecked, _ = written(courtyard)
    assert memory.surfels.rows.shape[0] >= 0.99 * unchecked.surfels.rows.shape[0]


def test_a_far_viewpoint_is_not_walled_in():
    """A frame at one end of a walk whose depth is far too small: nothing stands before what was seen at the other."""
    memory, places = Memory(config=first_write_config(0.1)), [at(0.0, 0.5 * i) for i in range(9)]
    wall = torch.full((32, 64), 20.0)
    for pose in places[:-1]:
        observe_first(memory, noise(32, 64, 3), wall, pose, CAMERA)
    before = memory.query(CAMERA, places[0])
    points = memory.surfels.rows.shape[0]
    memory.surfels.rows = memory.surfels.rows[:1]  # all is forgotten, but where one has been
    wrong = observe_first(memory, torch.zeros(32, 64, 3), 0.3 * wall, places[-1], CAMERA)
    assert points > 1000 and (before.visibility > 0.5).all()
    assert wrong.float().mean() < 0.05


def test_a_world_that_was_captured_is_looked_back_on():
    """Its voxels have no viewpoints: they are what it shows at the places it was observed from."""
    memory, frame = Memory(0.1), box_frame(at())
    memory.observe(frame.image, frame.depth, at(), CAMERA)
    beside = box_frame(at(*INSIDE))
    assert not observe_first(memory, beside.image, 0.4 * beside.depth, at(*INSIDE), CAMERA).any()
    assert memory.viewpoints.places.shape[0] == 1


def test_a_wall_within_reach_of_the_hand_is_not_shown():
    memory, frame = Memory(config=first_write_config(0.1)), box_frame(at())
    observe_first(memory, frame.image, torch.full((32, 64), 1.0), at(), CAMERA)
    near, there = at(1.0 - 0.8 * NEAR), at(1.0 - 1.5 * NEAR)
    assert memory.query(CAMERA, near).depth.min() >= NEAR
    assert memory.query(CAMERA, there).depth.min() < 2 * NEAR


def test_points_by_the_million_hide_nothing_and_cost_little():
    """A wall in fine points before another: none of the second shines through, and few are looked at."""
    memory, camera, fine = Memory(config=first_write_config(0.1)), Panorama(32, 64), Panorama(512, 1024)
    for distance, colour in ((2.0, 0.0), (1.0, 1.0)):
        depth = torch.full((512, 1024), distance)
        everything = torch.ones_like(depth, dtype=torch.bool)
        memory.observe(torch.full((512, 1024, 3), colour), depth, at(), fine, everything)
    for pose in (at(0.05, 0.02, 0.03), at(*INSIDE)):
        view = memory.query(camera, pose)
        assert memory.surfels.rows.shape[0] == 2 * 512 * 1024
        assert (view.features > 0.999).all() and (view.visibility == 1).float().mean() > 0.99
        rows, *_ = memory.surfels._project(camera, pose)
        assert rows.shape[0] < 10 * 32 * 64


def test_seen_from_nearer_it_is_written_again():
    """A wall in large pixels is less visible from near by, and what is seen there is kept for it."""
    memory, camera, far, near = Memory(config=first_write_config(0.1)), Panorama(32, 64), at(0.0, -2.4), at(0.0, -0.4)

    def wall(y):
        origins, directions = camera.rays(at(0.0, y))
        distance = -origins[:, 1] / directions[:, 1]
        distance = torch.where(distance > 0, distance, 0.0)
        colour = 0.5 + 0.4 * torch.sin(20 * (origins + distance[:, None] * directions))
        return colour.view(32, 64, 3), distance.view(32, 64)

    observe_first(memory, *wall(-2.4), far, camera)
    coarse = memory.query(camera, near).visibility[13:19, 28:36]
    assert coarse.min() > 0 and coarse.max() < 0.5
    assert observe_first(memory, *wall(-0.4), near, camera)[13:19, 28:36].all()
    fine = memory.query(camera, near)
    assert (fine.visibility[13:19, 28:36] > 0.9).all()
    assert torch.allclose(fine.features[13:19, 28:36], wall(-0.4)[0][13:19, 28:36], atol=0.02)


def test_a_drifting_generator_leaves_the_loop_closed():
    """Every frame in other colours and with wrong depth: the walk ends with what it began with."""
    memory, shown = Memory(config=first_write_config(0.1)), []
    for i, pose in enumerate([*box_walk(8), box_walk(8)[0]]):
        frame = box_frame(pose)
        view = memory.query(CAMERA, pose)
        known = view.visibility > 0.5
        image = torch.where(known[..., None], view.features, (frame.image + 0.05 * i).clamp(0, 1))
        depth = torch.where(known, view.depth, frame.depth * (1 + 0.1 * (noise(32, 64, seed=i) - 0.5)))
        observe_first(memory, image, depth, pose, CAMERA)
        shown.append(image)
    error = (shown[-1] - shown[0]).square().mean()
    assert -10 * math.log10(error) > 33


def test_without_points_voxels_alone_are_written_once():
    memory = room(1, MemoryConfig(0.1, 3))
    assert memory.surfels.empty
    new = write(memory, box_frame(at(*INSIDE)))
    assert new.float().mean() < 0.05
    assert (memory.query(CAMERA, at(*INSIDE)).features - box_frame(at(*INSIDE)).image).abs().mean() < 0.03


def test_the_points_turn_with_the_camera(box):
    """A quarter turn of the camera is a quarter turn of the image."""
    pose = at(*INSIDE)
    turned = pose.clone()
    turned[:3, 0], turned[:3, 2] = pose[:3, 2], -pose[:3, 0]
    view, other = box.query(CAMERA, pose), box.query(CAMERA, turned)
    differs = (view.features.roll(16, 1) - other.features).abs().amax(-1) > 0.02
    assert differs.float().mean() < 0.01


def test_a_frame_of_another_size_is_refused(box):
    with pytest.raises(ValueError, match="depth: expected floating point"):
        observe_first(box, torch.zeros(32, 64, 3), torch.zeros(32, 32), at(), CAMERA)
    bad = torch.full((32, 64, 3), math.nan)
    with pytest.raises(ValueError, match="rigid|finite"):
        observe_first(Memory(config=first_write_config(0.1)), bad, torch.ones(32, 64), at(), CAMERA)


def test_what_is_not_shown_is_not_written_at_every_visit():
    """A sky through gaps narrower than a voxel: the voxels hide it, and it is kept once all the same."""
    memory, depth = Memory(config=first_write_config(0.1)), torch.full((32, 64), 1.5)
    depth[8:24:4, ::4] = 0.0
    image, counts = noise(32, 64, 3), []
    for step in range(4):
        observe_first(memory, image, depth, at(0.0, 0.01 * (step % 2)), CAMERA)
        counts.append(memory.surfels.rows.shape[0])
    assert counts[0] == 32 * 64 and counts[2] == counts[3] < 1.03 * counts[0]


def test_pixels_to_add_are_a_mask(box):
    frame = box_frame(at())
    for new in (torch.ones(32, 64), torch.ones(32, 32, dtype=torch.bool)):
        with pytest.raises(ValueError, match="new: expected bool"):
            Memory(0.1).observe(frame.image, frame.depth, at(), CAMERA, new)


def test_added_pixels_take_nothing_back():
    """A later frame of a few pixels only, which sees through what is there: nothing of that is carved away."""
    memory = Memory(0.1)
    frame = box_frame(at())
    memory.observe(frame.image, frame.depth, at(), CAMERA)
    new = torch.zeros(32, 64, dtype=torch.bool)
    new[10:14, 10:14] = True
    memory.observe(frame.image, 3 * frame.depth, at(), CAMERA, new)
    assert torch.allclose(memory.query(CAMERA, at()).depth, frame.depth, rtol=0.05)
