"""Walks and path files."""

import json
import math

import pytest
import torch

from evoworld.apps.trajectories import level_pose, middle_pose, orbit, read_path, yaw_of
from evoworld.geometry import check_pose, look_at


def write_path(folder, content):
    path = folder / "path.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("yaw", [-3.0, -0.7, 0.0, 1.3, 3.1])
@pytest.mark.parametrize("pitch", [-1.2, 0.0, 0.4])
def test_level_pose_looks_where_yaw_and_pitch_say(yaw, pitch):
    eye = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    forward = torch.tensor(
        [math.cos(yaw) * math.cos(pitch), math.sin(yaw) * math.cos(pitch), math.sin(pitch)], dtype=torch.float64
    )
    pose = level_pose(eye, torch.tensor(yaw, dtype=torch.float64), pitch)
    torch.testing.assert_close(pose, look_at(eye, eye + forward))
    torch.testing.assert_close(yaw_of(pose), torch.tensor(yaw, dtype=torch.float64))


@pytest.mark.parametrize("sign", [-1, 1])
def test_yaw_survives_looking_straight_up_or_down(sign):
    poses = level_pose(torch.zeros(3), torch.tensor(0.8), torch.tensor(sign * math.pi / 2))
    torch.testing.assert_close(yaw_of(poses), torch.tensor(0.8), atol=1e-3, rtol=0)


@pytest.mark.parametrize("turn", [False, True])
def test_orbit_is_a_closed_level_walk_in_equal_steps(turn):
    center = level_pose(torch.tensor([3.0, -4.0, 1.5]), torch.tensor(0.6))
    walk = orbit(center, radius=0.5, num_frames=11, turn=turn)
    check_pose(walk)
    positions = walk[:, :3, 3]
    torch.testing.assert_close((positions - center[:3, 3]).norm(dim=-1), torch.full((11,), 0.5))
    assert (positions[:, 2] == 1.5).all()
    steps = positions.roll(-1, 0) - positions
    torch.testing.assert_close(steps.norm(dim=-1), torch.full((11,), 2 * 0.5 * math.sin(math.pi / 11)))
    if turn:
        middle_of_step = torch.nn.functional.cosine_similarity(steps, walk[:, :3, 2])
        torch.testing.assert_close(middle_of_step, torch.full((11,), math.cos(math.pi / 11)))
    else:
        torch.testing.assert_close(walk[:, :3, :3], center[:3, :3].expand(11, 3, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"radius": -1.0}, "radius"), ({"num_frames": 0}, "frames"), ({"center": torch.full((4, 4), 2.0)}, "center")],
)
def test_orbit_refuses_what_is_no_walk(change, message):
    arguments = {"center": torch.eye(4), "radius": 1.0, "num_frames": 8, "turn": False} | change
    with pytest.raises(ValueError, match=message):
        orbit(**arguments)


def test_middle_pose_is_one_of_the_poses():
    poses = torch.eye(4).repeat(5, 1, 1)
    poses[:, 0, 3] = torch.tensor([0.0, 1.0, 2.1, 3.0, 10.0])
    assert torch.equal(middle_pose(poses), poses[3])
    with pytest.raises(ValueError, match="at least one"):
        middle_pose(poses[:0])


def test_path_runs_through_its_keys(tmp_path):
    keys = [
        {"position": [0, 0, 1]},
        {"position": [1, 1, 1], "yaw": 90},
        {"position": [2, 0, 2], "yaw": 180, "pitch": 30},
    ]
    walk = read_path(write_path(tmp_path, {"keys": keys, "frames": 9}), num_frames=5)
    assert walk.shape == (9, 4, 4) and walk.dtype == torch.float32
    check_pose(walk)
    torch.testing.assert_close(walk[[0, 4, 8], :3, 3], torch.tensor([[0.0, 0, 1], [1, 1, 1], [2, 0, 2]]))
    torch.testing.assert_close(yaw_of(walk[[0, 4]]), torch.tensor([0.0, math.pi / 2]))
    torch.testing.assert_close(walk[8, 2, 2], torch.tensor(0.5))  # 30 degrees up
    assert 0 < yaw_of(walk[2]) < math.pi / 2


def test_path_of_whole_poses_and_of_one_key(tmp_path):
    pose = look_at(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 0.0, 1.0]))
    walk = read_path(write_path(tmp_path, {"keys": [{"camera_to_world": pose.tolist()}]}), num_frames=3)
    torch.testing.assert_close(walk, pose.expand(3, 4, 4))


@pytest.mark.parametrize("smooth", [True, False])
def test_closed_path_comes_back_without_repeating_its_first_frame(tmp_path, smooth):
    keys = [{"position": [math.cos(a), math.sin(a), 0]} for a in (0.0, 2.0, 4.0)]
    path = write_path(tmp_path, {"keys": keys, "closed": True, "smooth": smooth})
    positions = read_path(path, num_frames=30)[:, :3, 3]
    torch.testing.assert_close(positions[::10], torch.tensor([key["position"] for key in keys]))
    steps = (positions.roll(-1, 0) - positions).norm(dim=-1)
    assert steps.min() > 0.02 and steps.max() < 0.35
    if smooth:  # the direction changes no more at the seam than elsewhere
        bends = torch.nn.functional.cosine_similarity(
            positions.roll(-1, 0) - positions, positions - positions.roll(1, 0)
        )
        assert bends[0] > bends[1:].min() - 0.05


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ([], "expected an object"),
        ({}, "keys: expected a list"),
        ({"keys": []}, "at least one key"),
        ({"keys": [{"position": [0, 0]}]}, r"keys\[0\].position: expected finite numbers \[3\]"),
        ({"keys": [{"position": [0, 0, "a"]}]}, r"keys\[0\].position"),
        ({"keys": [{"position": [0, 0, None]}]}, r"keys\[0\].position"),
        ('{"keys": [{"position": [0, 0, NaN]}]}', r"keys\[0\].position"),
        ({"keys": [{"position": [0, 0, 0], "yaw": "north"}]}, r"keys\[0\].yaw: expected a finite number"),
        ({"keys": [{"position": [0, 0, 0], "roll": 1}]}, "unknown field 'roll'"),
        ({"keys": [{"yaw": 1}]}, "either position"),
        ({"keys": [{"camera_to_world": [[2.0] * 4] * 4}]}, r"keys\[0\].camera_to_world: not rigid"),
        ({"keys": [{"position": [0, 0, 0]}], "frames": 0}, "frames"),
        ({"keys": [{"position": [0, 0, 0]}], "frames": 2.5}, "frames"),
        ({"keys": [{"position": [0, 0, 0]}], "closed": "yes"}, "closed: expected true or false"),
        ({"keys": [{"position": [0, 2e4, 0]}]}, r"keys\[0\]: expected places within 10000 m"),
        ("[" * 100_000, "brackets within brackets"),
    ],
)
def test_bad_path_files_say_what_is_wrong(tmp_path, content, message):
    path = write_path(tmp_path, content)
    with pytest.raises(ValueError, match=message) as caught:
        read_path(path, num_frames=4)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_path_file_may_begin_with_the_mark_that_some_editors_write(tmp_path):
    (tmp_path / "path.json").write_text(json.dumps({"keys": [{"position": [0, 0, 1]}]}), encoding="utf-8-sig")
    assert read_path(tmp_path / "path.json", num_frames=2).shape == (2, 4, 4)


def test_a_path_file_that_is_not_text(tmp_path):
    (tmp_path / "path.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match="not text"):
        read_path(tmp_path / "path.json", num_frames=4)
