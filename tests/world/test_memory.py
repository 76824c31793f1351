"""The memory in scenes of which everything is known."""

import math

import pytest
import torch
from box_world import CAMERA, HALF_SIZE, box_frame, box_walk

from evoworld.geometry import Cubemap, Panorama, Pinhole
from evoworld.world import Memory

VOXEL = 0.1
INSIDE = torch.tensor([0.2, -0.1, 0.1])  # a place that no frame of the walk was taken from
# Colours vary by up to 0.8 a metre: a tenth of a voxel of 0.1 m, and of a pixel as large, is 0.01.
COLOUR_TOLERANCE = 0.01  # mean
DEPTH_TOLERANCE = 0.04  # mean, relative: half a voxel at 1.3 m


def at(x=0.0, y=0.0, z=0.0):
    """A level pose, looking along +y."""
    pose = torch.tensor([[1.0, 0, 0, x], [0, 0, 1, y], [0, -1, 0, z], [0, 0, 0, 1]])
    return pose


def observe(memory, frame, shift=(0.0, 0.0, 0.0)):
    pose = frame.camera_to_world.clone()
    pose[:3, 3] += torch.tensor(shift)
    memory.observe(frame.image, frame.depth, pose, frame.camera)


def room(num_frames=6, shift=(0.0, 0.0, 0.0), **options):
    memory = Memory(VOXEL, **options)
    for pose in box_walk(num_frames):
        observe(memory, box_frame(pose), shift)
    return memory


def shell(memory, distance, value, pose=None, camera=CAMERA, change=None):
    """Observes a sphere of one colour around a pose; `change(features, depth)` edits the frame before."""
    features = torch.full((camera.height, camera.width, memory.config.feature_dim), value)
    depth = torch.full((camera.height, camera.width), distance)
    if change is not None:
        change(features, depth)
    memory.observe(features, depth, at() if pose is None else pose, camera)


def errors(view, frame):
    """Mean absolute error of the colours, and mean relative error of the ranges."""
    wanted = frame.camera.range_from_depth(frame.depth)
    return (view.features - frame.image).abs().mean(), ((view.depth - wanted).abs() / wanted).mean()


TURNED = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))  # looks the other way


@pytest.fixture(scope="module")
def box():
    return room()


# What was seen is shown


def test_an_observed_pose_shows_what_was_seen(box):
    frame = box_frame(box_walk(6)[2])
    view = box.query(frame.camera, frame.camera_to_world)
    colour, depth = errors(view, frame)
    assert colour < COLOUR_TOLERANCE and depth < DEPTH_TOLERANCE
    assert view.opacity.min() > 0.9 and view.visibility.min() > 0.9
    assert [part.shape for part in view] == [(32, 64, 3), (32, 64), (32, 64), (32, 64)]


@pytest.mark.parametrize(
    "camera",
    [Panorama(32, 64), Panorama(46, 92), Pinhole.from_fov(40, 60, math.radians(90)), Cubemap(24)],
    ids=lambda camera: type(camera).__name__,
)
def test_a_new_pose_shows_it_to_any_camera(box, camera):
    pose = at(*INSIDE.tolist())
    frame = box_frame(pose, camera)
    view = box.query(camera, pose)
    colour, depth = errors(view, frame)
    assert colour < COLOUR_TOLERANCE and depth < DEPTH_TOLERANCE
    assert view.visibility.mean() > 0.98


@pytest.mark.parametrize(
    "camera", [Pinhole.from_fov(48, 64, math.radians(100)), Cubemap(24)], ids=["pinhole", "cubemap"]
)
def test_any_camera_can_observe(camera):
    memory, pose = Memory(VOXEL), at(0.2, 0.1, 0.0)
    frame = box_frame(pose, camera)
    observe(memory, frame)
    colour, depth = errors(memory.query(camera, pose), frame)
    assert colour < COLOUR_TOLERANCE and depth < DEPTH_TOLERANCE


def test_the_world_may_lie_far_from_the_origin(box):
    """300 m away, and at negative coordinates: as good as at the origin, up to float32's 0.03 mm there."""
    shift = (300.0, -300.0, -20.0)
    far = room(shift=shift)
    frame = box_frame(at(*INSIDE.tolist()))
    pose = frame.camera_to_world.clone()
    pose[:3, 3] += torch.tensor(shift)
    here, there = errors(box.query(CAMERA, frame.camera_to_world), frame), errors(far.query(CAMERA, pose), frame)
    assert there[0] < here[0] + 0.002 and there[1] < here[1] + 0.002
    assert abs(far.num_voxels - box.num_voxels) < 0.05 * box.num_voxels


def test_features_of_16_channels_are_like_those_of_3():
    memory, narrow = Memory(VOXEL, feature_dim=16), Memory(VOXEL)
    for pose in box_walk(3):
        frame = box_frame(pose)
        observe(narrow, frame)
        memory.observe(frame.image.repeat(1, 1, 6)[..., :16], frame.depth, pose, frame.camera)
    view, expected = (m.query(CAMERA, at(*INSIDE.tolist())) for m in (memory, narrow))
    assert torch.allclose(view.features, expected.features.repeat(1, 1, 6)[..., :16], atol=1e-5)
    assert torch.allclose(view.depth, expected.depth, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_other_precision_are_taken(dtype):
    memory = Memory(VOXEL)
    memory.observe(
        torch.full((32, 64, 3), 0.5, dtype=dtype), torch.ones(32, 64, dtype=dtype), torch.eye(4, dtype=dtype), CAMERA
    )
    assert (memory.query(CAMERA, at()).features - 0.5).abs().max() < 1e-3


def test_surfaces_do_not_darken_next_to_what_was_not_seen():
    """Half a white shell: up to its edge everything that is visible is white."""
    memory = Memory(VOXEL)
    camera = Panorama(64, 128)

    def halve(features, depth):
        depth[:, :64] = 0.0

    shell(memory, 1.0, 1.0, camera=camera, change=halve)
    view = memory.query(camera, at(), background=False)
    assert (view.features[view.visibility > 0.01] - 1).abs().max() < 1e-3
    assert (view.visibility[:, 66:-2] > 0.9).all()


# What was not seen


def test_a_new_memory_shows_nothing():
    view = Memory(VOXEL).query(CAMERA, torch.eye(4))
    assert not any(part.any() for part in view)


def test_visibility_is_0_where_nothing_was_seen():
    """The left half of a room was never looked at."""
    memory = Memory(VOXEL)
    camera = Pinhole.from_fov(48, 48, math.radians(80))
    frame = box_frame(at(), camera)  # looks along +y
    observe(memory, frame)
    view = memory.query(CAMERA, at())
    directions = CAMERA.directions().view(32, 64, 3)
    forward = directions[..., 2] > math.cos(math.radians(35))
    backward = directions[..., 2] < 0
    assert (view.visibility[forward] > 0.9).all()
    assert not view.visibility[backward].any() and not view.features[backward].any() and not view.depth[backward].any()


def test_the_sky_is_shown_behind_everything_and_can_be_hidden():
    memory = Memory(VOXEL)

    def open_roof(features, depth):
        features[:16] = torch.tensor([0.2, 0.4, 0.9])
        depth[:16] = 0.0

    shell(memory, 1.0, 0.7, change=open_roof)
    here, elsewhere = memory.query(CAMERA, at()), memory.query(CAMERA, at(0.3, 0.2, -0.1))
    for view in (here, elsewhere):
        up = view.opacity < 0.01
        assert up.float().mean() > 0.2
        assert (view.features[up] - torch.tensor([0.2, 0.4, 0.9])).abs().max() < 0.2 and not view.depth[up].any()
        assert view.visibility[up].min() > 0.9
    assert (here.features[:14] - torch.tensor([0.2, 0.4, 0.9])).abs().max() < 1e-3
    hidden = memory.query(CAMERA, at(), background=False)
    assert not hidden.features[:12].any() and not hidden.visibility[:12].any()
    assert torch.equal(hidden.features[20:], here.features[20:])


def test_the_sky_has_no_holes_for_a_tilted_camera():
    """A camera whose poles are not the world's, and one coarser than the first."""
    memory = Memory(VOXEL)
    shell(memory, 0.0, 0.6, torch.eye(4))
    assert memory.query(CAMERA, at()).visibility.min() > 0.9
    memory = Memory(VOXEL)
    shell(memory, 0.0, 0.6, camera=Pinhole.from_fov(48, 48, math.radians(40)))
    assert not memory.query(Pinhole.from_fov(48, 48, math.radians(40)), at() @ TURNED).visibility.any()
    shell(memory, 0.0, 0.6, camera=Panorama(16, 32))
    assert memory.query(CAMERA, at()).visibility.min() > 0.9


@pytest.mark.parametrize("nothing", [0.0, -1.0, math.nan, math.inf])
def test_depth_that_is_all_nothing_is_all_sky(nothing):
    memory = Memory(VOXEL)
    shell(memory, nothing, 0.6)
    assert memory.num_voxels == 0
    view = memory.query(CAMERA, at(5.0, 0.0, 0.0))
    assert (view.features - 0.6).abs().max() < 1e-3 and not view.depth.any() and view.visibility.min() > 0.99


# What is no longer there


def passer_by(features, depth):
    """A dark figure half a metre away, 11 x 17 degrees large."""
    features[14:17, 30:33] = 0.0
    depth[14:17, 30:33] = 0.5


def test_a_passer_by_fades():
    memory = Memory(VOXEL)
    shell(memory, 1.5, 0.8, change=passer_by)
    assert memory.query(CAMERA, at()).features[15, 31].max() < 0.2  # he is there
    for _ in range(4):
        shell(memory, 1.5, 0.8)
    view = memory.query(CAMERA, at())
    assert (view.features[14:17, 30:33] - 0.8).abs().max() < 0.05
    assert (view.depth[14:17, 30:33] - 1.5).abs().max() < 0.15
    assert view.visibility.min() > 0.9


def test_a_surface_that_stays_is_not_carved_away():
    """The figure is seen every time: it stays."""
    memory = Memory(VOXEL)
    for _ in range(5):
        shell(memory, 1.5, 0.8, change=passer_by)
    view = memory.query(CAMERA, at())
    assert view.features[15, 31].max() < 0.2 and abs(view.depth[15, 31] - 0.5) < 0.05


@pytest.mark.parametrize("wrong", [0.4, 1.1])
def test_a_bad_depth_pixel_fades(wrong):
    """One pixel that is too near among good ones; the frames after it see through it."""
    memory = Memory(VOXEL)

    def speck(features, depth):
        depth[15, 31] = wrong

    shell(memory, 1.5, 0.8, change=speck)
    for _ in range(4):
        shell(memory, 1.5, 0.8)
    view = memory.query(CAMERA, at())
    assert (view.depth - 1.5).abs().max() < 0.3 and view.visibility.min() > 0.9


def test_sky_carves_too():
    """A figure before the open sky: later frames see no depth there."""
    memory = Memory(VOXEL)

    def figure(features, depth):
        depth[:] = 0.0
        passer_by(features, depth)

    shell(memory, 1.5, 0.8, change=figure)
    assert memory.query(CAMERA, at()).depth[15, 31] > 0
    for _ in range(4):
        shell(memory, 0.0, 0.8)
    view = memory.query(CAMERA, at())
    assert not view.depth[14:17, 30:33].any() and (view.features[14:17, 30:33] - 0.8).abs().max() < 0.05


# Growth


def test_rows_never_move_and_storage_doubles():
    memory, shape = Memory(VOXEL), []
    for number in range(12):
        before = [level.grid.brick_coordinates.clone() for level in memory.levels]
        storage = [level.sums.untyped_storage().nbytes() for level in memory.levels]
        shell(memory, 1.0, 0.5, at(2.0 * number))
        for level, bricks, bytes_before in zip(memory.levels, before, storage, strict=True):
            assert torch.equal(level.grid.brick_coordinates[: len(bricks)], bricks)
            bytes_after = level.sums.untyped_storage().nbytes()
            assert bytes_after == bytes_before or bytes_after >= 2 * bytes_before
        shape.append(storage[1])
    assert len(set(shape)) <= 6  # of 12 frames: allocated 1, 2, 4, 8, 16 shells


def test_growth_keeps_what_is_there():
    """A shell 20 m off changes nothing here."""
    memory = Memory(VOXEL)
    shell(memory, 1.0, 0.25)
    before = memory.query(CAMERA, at())
    shell(memory, 1.0, 0.75, at(20.0))
    after = memory.query(CAMERA, at())
    assert torch.allclose(before.features, after.features, atol=1e-5)
    assert torch.allclose(before.depth, after.depth, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_frames_make_the_same_memory_bit_for_bit(box, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        again = room()
        view = again.query(CAMERA, at(*INSIDE.tolist()))
    finally:
        torch.set_num_threads(before)
    for level, twin in zip(box.levels, again.levels, strict=True):
        for name, tensor in level.tensors().items():
            assert torch.equal(tensor, twin.tensors()[name]), name
    for part, twin in zip(box.query(CAMERA, at(*INSIDE.tolist())), view, strict=True):
        assert torch.equal(part, twin)


# Bad input


@pytest.fixture(scope="module")
def small():
    memory = Memory(VOXEL)
    shell(memory, 1.0, 0.5)
    return memory


def good(**changes):
    arguments = {
        "features": torch.full((32, 64, 3), 0.5),
        "depth": torch.ones(32, 64),
        "camera_to_world": torch.eye(4),
        "camera": CAMERA,
    }
    return arguments | changes


def with_value(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


MIRROR = torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0]))
BAD_POSES = [
    (with_value(torch.eye(4), (0, 3), math.nan), "camera_to_world: holds NaN or infinite values"),
    (with_value(torch.eye(4), (1, 3), math.inf), "camera_to_world: holds NaN or infinite values"),
    (2 * torch.eye(4), "camera_to_world: not rigid: the last row"),
    (torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])), "camera_to_world: not rigid: R^T R"),
    (MIRROR, "camera_to_world: not rigid: the rotation mirrors"),
]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"features": torch.zeros(32, 64, 4)}, "features: expected floating point [32, 64, 3]"),
        ({"features": torch.zeros(3, 32, 64)}, "features: expected floating point [32, 64, 3]"),
        ({"features": torch.zeros(16, 32, 3)}, "got torch.float32 [16, 32, 3]"),
        ({"features": torch.zeros(32, 64, 3, dtype=torch.uint8)}, "got torch.uint8"),
        ({"features": with_value(torch.zeros(32, 64, 3), (3, 4, 1), math.nan)}, "features: expected finite values"),
        ({"features": with_value(torch.zeros(32, 64, 3), (3, 4, 1), math.inf)}, "features: expected finite values"),
        ({"depth": torch.ones(32, 64, 1)}, "depth: expected floating point [32, 64]"),
        ({"depth": torch.ones(32, 64, dtype=torch.int64)}, "got torch.int64"),
        (
            {"camera_to_world": torch.eye(3)},
            "camera_to_world: expected floating point [4, 4], got torch.float32 [3, 3]",
        ),
        ({"camera_to_world": torch.eye(4)[None]}, "camera_to_world: expected floating point [4, 4]"),
        ({"camera": Panorama(16, 32)}, "features: expected floating point [16, 32, 3]"),
        *(({"camera_to_world": pose}, message) for pose, message in BAD_POSES),
    ],
)
def test_a_frame_that_is_refused_changes_nothing(small, changes, message):
    tensors = [t.clone() for level in small.levels for t in level.tensors().values()]
    background, poses = small.background.sums.clone(), small.poses.clone()
    with pytest.raises(ValueError) as error:
        small.observe(**good(**changes))
    assert message in str(error.value)
    now = [t for level in small.levels for t in level.tensors().values()]
    assert all(torch.equal(a, b) for a, b in zip(tensors, now, strict=True))
    assert torch.equal(small.background.sums, background) and torch.equal(small.poses, poses)


def test_a_frame_too_far_away_changes_nothing(small):
    """Its voxels would need a table that no machine holds."""
    tensors = [t.clone() for level in small.levels for t in level.tensors().values()]
    pose = at(1e5, 1e5, 1e5)
    with pytest.raises(ValueError, match="drop the points that are far away or take larger voxels"):
        small.observe(**good(camera_to_world=pose))
    now = [t for level in small.levels for t in level.tensors().values()]
    assert all(torch.equal(a, b) for a, b in zip(tensors, now, strict=True))
    assert (small.query(CAMERA, at()).features - 0.5).abs().max() < 1e-3


@pytest.mark.parametrize(
    "pose, message",
    [
        *BAD_POSES,
        (torch.eye(3), "camera_to_world: expected"),
        (torch.eye(4, dtype=torch.int64), "camera_to_world: expected"),
    ],
)
def test_a_query_with_a_bad_pose_is_refused(small, pose, message):
    with pytest.raises(ValueError) as error:
        small.query(CAMERA, pose)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"voxel_size": 0.0}, "voxel_size: expected a positive number of metres, got 0"),
        ({"voxel_size": -0.1}, "voxel_size: expected a positive number"),
        ({"voxel_size": math.nan}, "voxel_size: expected a positive number"),
        ({"voxel_size": math.inf}, "voxel_size: expected a positive number"),
        ({"feature_dim": 0}, "feature_dim: expected at least 1, got 0"),
    ],
)
def test_a_memory_of_impossible_size_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Memory(**options)


def test_what_it_says_about_itself(box):
    assert box.voxel_size == VOXEL and box.poses.shape == (6, 4, 4)
    assert box.num_voxels == sum(level.grid.num_voxels for level in box.levels) > 0
    assert box.nbytes > box.num_voxels * 4 * (3 + 1 + 3)
    half = HALF_SIZE + 8 * VOXEL  # walls, and the rest of a brick of 4 voxels on either side
    assert (box.grid.voxel_positions().abs() <= half).all()
