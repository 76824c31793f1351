"""The reprojection peer: exact where geometry says what must come out."""

import math
from types import SimpleNamespace

import pytest
import torch

from evoworld.evaluation import fill_holes, reproject_points
from evoworld.geometry import Panorama, Pinhole, pose_from_euler

IDENTITY = torch.eye(4)


def frame(camera, depth, image=None, pose=IDENTITY, seed=0):
    if image is None:
        image = torch.rand(camera.height, camera.width, 3, generator=torch.Generator().manual_seed(seed))
    return SimpleNamespace(image=image, depth=depth, camera_to_world=pose, camera=camera)


def test_same_pose_gives_the_frame_back():
    camera = Panorama(16, 32)
    pose = pose_from_euler(torch.tensor([1.0, -2.0, 0.5, 0.3, -0.2, 2.0]))
    depth = 1 + torch.rand(16, 32, generator=torch.Generator().manual_seed(1))
    depth[3, 4] = 0
    depth[5, 6] = math.nan
    depth[7, 8] = math.inf
    source = frame(camera, depth, pose=pose)
    image, found, mask = reproject_points([source], camera, pose)
    there = torch.isfinite(depth) & (depth > 0)
    assert torch.equal(mask, there)
    assert torch.equal(image[there], source.image[there])
    assert torch.allclose(found[there], depth[there], rtol=1e-5)
    assert (image[~there] == 0).all() and (found[~there] == 0).all()


def test_turning_by_whole_pixels_is_a_roll_across_the_seam():
    camera = Panorama(16, 32)
    source = frame(camera, torch.full((16, 32), 2.0))
    # OpenCV's y axis points down: turning by +angle about it turns the view to the right.
    pose = pose_from_euler(torch.tensor([0.0, 0.0, 0.0, 0.0, 2 * math.pi * 5 / 32, 0.0]))
    image, _, mask = reproject_points([source], camera, pose)
    assert mask.all()
    assert torch.equal(image, source.image.roll(-5, dims=1))


def test_the_nearest_point_wins_in_any_order():
    camera = Panorama(8, 16)
    near = frame(camera, torch.full((8, 16), 1.0), seed=1)
    far = frame(camera, torch.full((8, 16), 3.0), seed=2)
    for frames in ([near, far], [far, near]):
        image, depth, _ = reproject_points(frames, camera, IDENTITY)
        assert torch.equal(image, near.image)
        assert torch.allclose(depth, torch.ones(8, 16))


def test_equal_distances_keep_the_earlier_frame():
    camera = Panorama(8, 16)
    first, second = (frame(camera, torch.ones(8, 16), seed=seed) for seed in (1, 2))
    assert torch.equal(reproject_points([first, second], camera, IDENTITY).image, first.image)


def test_a_point_seen_from_elsewhere_lands_where_it_must():
    """A red point 2 m ahead, seen from 2 m to its right: at 45 degrees to the left, 2 sqrt 2 m off."""
    camera = Panorama(45, 90)
    depth, image = torch.zeros(45, 90), torch.zeros(45, 90, 3)
    ahead = 45  # column whose centre is 2 degrees right of straight ahead
    depth[22, ahead] = 2.0
    image[22, ahead, 0] = 1.0
    pose = IDENTITY.clone()
    pose[0, 3] = 2.0 + 2.0 * math.sin(math.radians(2))
    found, distance, mask = reproject_points([frame(camera, depth, image)], camera, pose)
    assert mask.sum() == 1
    row, column = mask.nonzero()[0].tolist()
    angle = math.degrees(math.atan2(-2.0, 2.0 * math.cos(math.radians(2))))
    assert (row, column) == (22, math.floor((angle / 360 + 0.5) * 90))
    assert distance[row, column].item() == pytest.approx(2 * math.hypot(1, math.cos(math.radians(2))), rel=1e-5)
    assert found[row, column].tolist() == [1.0, 0.0, 0.0]


def test_pinhole_frames_carry_z_depth_and_targets_drop_what_is_out_of_view():
    view = Pinhole(9, 9, fx=6.0, fy=6.0, cx=4.5, cy=4.5)
    wall = frame(view, torch.full((9, 9), 2.0))
    image, depth, mask = reproject_points([wall], view, IDENTITY)
    assert mask.all() and torch.equal(image, wall.image)
    assert torch.allclose(depth, view.range_from_depth(wall.depth), rtol=1e-5)
    narrow = Pinhole(5, 5, fx=6.0, fy=6.0, cx=2.5, cy=2.5)
    assert torch.equal(reproject_points([wall], narrow, IDENTITY).image, wall.image[2:7, 2:7])
    behind = pose_from_euler(torch.tensor([0.0, 0.0, 0.0, 0.0, math.pi, 0.0]))
    assert not reproject_points([wall], narrow, behind).mask.any()


def test_filling_keeps_what_is_known_and_interpolates_the_rest():
    image = torch.full((13, 27, 3), 0.25)
    mask = torch.rand(13, 27, generator=torch.Generator().manual_seed(3)) > 0.7
    filled = fill_holes(image * mask[..., None], mask)
    assert torch.allclose(filled, image)
    ramp = torch.linspace(0, 1, 32)[None, :, None].expand(16, 32, 1).clone()
    hole = torch.ones(16, 32, dtype=torch.bool)
    hole[6:9, 10:13] = False
    filled = fill_holes(ramp * hole[..., None], hole)
    assert torch.equal(filled[hole], ramp[hole])
    assert (filled - ramp).abs().max() < 0.08
    assert (fill_holes(ramp, torch.zeros(16, 32, dtype=torch.bool)) == 0).all()


def test_bad_input():
    camera = Panorama(8, 16)
    with pytest.raises(ValueError, match="at least one"):
        reproject_points([], camera, IDENTITY)
    with pytest.raises(ValueError, match="without"):
        reproject_points([frame(camera, None)], camera, IDENTITY)
