"""Ways through a world are found where there is space."""

import math

import pytest
import torch
from box_world import HALF_SIZE, box_frame

from evoworld.apps.routes import CLEAR, HEADINGS, STEP, clearance, free_way, loop, stretches
from evoworld.apps.trajectories import level_pose
from evoworld.geometry import Panorama

CAMERA = Panorama(64, 128)


def pose_at(x=0.0, y=0.0, yaw=0.0):
    return level_pose(torch.tensor([x, y, 0.0]), torch.tensor(yaw))


def depth_at(pose):
    return box_frame(pose, CAMERA).depth


def walked(name, pose, num_frames):
    """All poses of a route in the box, the first included."""
    route = stretches(name, (depth_at(pose), pose), num_frames)
    poses = [pose[None]]
    new = next(route)
    while True:
        poses.append(new)
        try:
            new = route.send(depth_at(new[-1]))
        except StopIteration:
            return torch.cat(poses)


def test_clearance_is_the_distance_to_the_walls():
    free = clearance(depth_at(pose_at()))
    column = {0: 0, 32: 1, 64: 0, 96: 1}  # behind, left, ahead, right -> the axis that is looked along
    for where, axis in column.items():
        assert float(free[where]) == pytest.approx(float(HALF_SIZE[axis]), rel=0.02)


def test_floor_and_ceiling_are_in_nobody_s_way():
    """A room 2.4 m high and 40 m wide, seen from 1.5 m above its floor."""
    _, directions = CAMERA.rays(torch.eye(4))
    down = directions.view(64, 128, 3)[..., 1]
    depth = torch.where(down > 0, 1.5 / down, 0.9 / -down).clamp(max=20.0)
    assert float(clearance(depth).min()) > 8


def test_sky_is_no_obstacle_and_shoulders_need_space():
    depth = torch.zeros(64, 128)
    depth[32:, 64:66] = 2.0  # a pole straight ahead
    way = free_way(clearance(depth))
    assert float(way[HEADINGS // 2]) < 2.1 and float(way[HEADINGS // 2 + 1]) < 2.1
    assert min(float(way[0]), float(way[HEADINGS // 4])) > 29.9


@pytest.mark.parametrize("yaw", [0.0, 1.0, -2.5])
def test_a_loop_stays_clear_and_comes_back(yaw):
    start = pose_at(0.5, 0.3, yaw)
    poses = loop(depth_at(start), start, 24)
    torch.testing.assert_close(poses[0], start, atol=1e-5, rtol=0)
    torch.testing.assert_close(poses[-1], start, atol=1e-5, rtol=0)
    assert (HALF_SIZE[:2] - poses[:, :2, 3].abs()).min() > 0.8 * CLEAR
    steps = (poses[1:] - poses[:-1])[:, :3, 3].norm(dim=-1)
    assert steps.max() / steps.min() < 1.01 and steps.sum() > 1.5
    torch.testing.assert_close(poses[:, :3, :3], start[:3, :3].expand(24, 3, 3))


def test_a_loop_of_one_or_two_frames_stays():
    for count in (1, 2):
        poses = loop(depth_at(pose_at()), pose_at(), count)
        assert poses.shape == (count, 4, 4)
        torch.testing.assert_close(poses[:, :3, 3], torch.zeros(count, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["forward", "explore"])
@pytest.mark.parametrize("yaw", [0.0, 2.0])
def test_routes_stay_clear_of_the_walls(name, yaw):
    poses = walked(name, pose_at(-0.7, 0.1, yaw), 30)
    assert poses.shape == (30, 4, 4)
    assert (HALF_SIZE[:2] - poses[:, :2, 3].abs()).min() > 0.3
    steps = (poses[1:] - poses[:-1])[:, :3, 3].norm(dim=-1)
    assert steps.max() < STEP + 1e-4
    torch.testing.assert_close(poses[:, :3, :3], poses[:1, :3, :3].expand(30, 3, 3), atol=1e-5, rtol=0)


def test_forward_goes_where_it_looks():
    poses = walked("forward", pose_at(-0.9, 0.0, 0.0), 7)
    assert poses[-1, 0, 3] > -0.9 + 5 * STEP and poses[:, 1, 3].abs().max() < 0.2


def test_explore_sees_more_places_than_standing_still():
    poses = walked("explore", pose_at(-0.7, 0.1), 60)
    assert (poses[:, :2, 3].amax(0) - poses[:, :2, 3].amin(0)).max() > 0.8
    assert math.isfinite(float(poses.sum()))


@pytest.mark.parametrize(("segment", "expected"), [(1, [4, 4, 3]), (3, [6, 5]), (8, [8, 3])])
def test_whole_segments_are_planned_at_a_time(segment, expected):
    depth = torch.full((8, 16), 3.0)
    route = stretches("explore", (depth, pose_at()), 12, segment)
    poses = [next(route)]
    with pytest.raises(StopIteration):
        while True:
            poses.append(route.send(depth))
    steps = torch.cat(poses)[:, :3, 3].diff(dim=0).norm(dim=-1)
    assert [len(new) for new in poses] == expected and steps.max() < STEP + 1e-4
