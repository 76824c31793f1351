from pathlib import Path

import pytest
import torch
from landmarks import SIZE, STATIONS, write_nerfstudio

from evoworld.data import CaptureError, CaptureWalks, read_capture
from evoworld.geometry import Panorama, invert_pose, rotate, transform_points

LIVING_ROOM = Path(__file__).parents[2] / "examples" / "living_room"


def test_a_capture_is_cut_into_walks_that_overlap():
    capture = read_capture(LIVING_ROOM)[:7]
    walks = CaptureWalks([capture], height=8, num_frames=3)
    assert [walk.name for walk in walks] == [f"living_room-{start}" for start in (0, 1, 2, 3, 4)]
    walk = walks[-1]
    assert walk.camera_to_world[:, :3, 3].equal(capture.camera_to_world[4:, :3, 3])
    assert walk.image.shape == (3, 8, 16, 3) and walk.depth.shape == (3, 8, 16) and walk.captions == ("",) * 3
    assert len(CaptureWalks([LIVING_ROOM, capture], num_frames=6)) == 12


def test_a_walk_may_be_as_long_as_its_capture():
    assert len(CaptureWalks([LIVING_ROOM, str(LIVING_ROOM)], num_frames=32)) == 2


def test_places_of_the_world_are_seen_where_they_are(tmp_path):
    """Depth of frames that looked up, down and about is where level cameras of one yaw have to see it."""
    write_nerfstudio(tmp_path, depth_type="range")
    walk = CaptureWalks([tmp_path], height=SIZE[0], num_frames=len(STATIONS))[0]
    capture = read_capture(tmp_path)
    for frame, pose, depth in zip(capture, walk.camera_to_world, walk.depth, strict=True):
        torch.testing.assert_close(pose[:3, 3], frame.camera_to_world[:3, 3])
        there = frame.depth.flatten() > 0
        points = frame.camera.directions()[there] * frame.depth.flatten()[there][:, None]
        points = transform_points(invert_pose(pose), transform_points(frame.camera_to_world, points))
        u, v = Panorama(*SIZE).project(points).unbind(-1)
        found = 0
        for column, row, distance in zip(u, v, points.norm(dim=-1), strict=True):
            rows = (int(row) + torch.arange(-1, 2)).clamp(0, SIZE[0] - 1)
            columns = (int(column) + torch.arange(-1, 2)) % SIZE[1]
            found += int(((depth[rows][:, columns] - distance).abs() < 0.01).any())
        assert found >= 0.7 * len(u)  # nearest pixels skip some single ones


def test_the_yaw_is_that_of_the_first_frame(tmp_path):
    write_nerfstudio(tmp_path, depth_type="range")
    walk = CaptureWalks([tmp_path], height=8, num_frames=2)[0]
    first = read_capture(tmp_path).camera_to_world[0]
    ahead = torch.tensor([[0.0, 0.0, 1.0]])
    seen = rotate(walk.camera_to_world[0, :3, :3], ahead)[0, :2]
    expected = torch.nn.functional.normalize(rotate(first[:3, :3], ahead)[0, :2], dim=0)
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_frames": 33}, CaptureError, "living_room: expected at least 33 frames for a walk, got 32"),
        ({"num_frames": 0}, ValueError, "expected at least 1"),
        ({"captures": []}, ValueError, "captures: expected at least one"),
        ({"captures": ["/nowhere"]}, CaptureError, "/nowhere: no such"),
    ],
)
def test_refuses(change, error, message):
    with pytest.raises(error, match=message):
        CaptureWalks(**{"captures": [LIVING_ROOM], "height": 8, "num_frames": 4, **change})


def test_refuses_what_is_no_panorama(tmp_path):
    write_nerfstudio(tmp_path, kind="pinhole")
    with pytest.raises(CaptureError, match="expected a panorama, got Pinhole"):
        CaptureWalks([tmp_path], num_frames=2)
