import math

import numpy as np
import pytest
import torch
from landmarks import FOCAL, SIZE, STATIONS, assert_sees_landmarks, refused, write_json, write_nerfstudio

from evoworld.data import Frame, read_capture, write_capture
from evoworld.geometry import Cubemap, Panorama, Pinhole, look_at


@pytest.mark.parametrize(("kind", "depth_type"), [("panorama", "range"), ("pinhole", "z"), ("pinhole", "range")])
@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_colours_and_depth_land_where_they_are(tmp_path, kind, depth_type, suffix):
    write_nerfstudio(tmp_path, kind, depth_type, suffix=suffix)
    capture = read_capture(tmp_path)
    assert len(capture) == len(STATIONS) and capture.has_depth
    for frame, station in zip(capture, STATIONS, strict=True):
        assert_sees_landmarks(frame, station, kind)


def test_depth_defaults_to_z_and_millimetres(tmp_path):
    content = write_nerfstudio(tmp_path, "pinhole")
    del content["depth_unit_scale_factor"], content["camera_model"]
    write_json(tmp_path, content)
    assert_sees_landmarks(read_capture(tmp_path / "transforms.json")[0], STATIONS[0], "pinhole")


def test_frames_may_have_their_own_intrinsics_and_time(tmp_path):
    content = write_nerfstudio(tmp_path, "pinhole", depth=False)
    content["frames"][1] |= {"fl_x": 70, "cx": 1.5, "time": 2}
    del content["frames"][2]
    del content["fl_y"]
    for frame in content["frames"]:
        frame["fl_y"] = FOCAL[1]
    write_json(tmp_path, content)
    capture = read_capture(tmp_path)
    assert capture.camera == Pinhole(*SIZE, *FOCAL)
    assert capture[1].camera == Pinhole(*SIZE, 70, 30, 1.5, 30)
    assert (capture[0].timestamp, capture[1].timestamp) == (None, 2.0)
    assert not capture.has_depth and capture[0].depth is None


def test_applied_transform_is_not_applied_again(tmp_path):
    content = write_nerfstudio(tmp_path, depth_type="range")
    content["applied_transform"] = [[0, 1, 0, 3], [1, 0, 0, 0], [0, 0, -1, 0]]
    write_json(tmp_path, content)
    assert_sees_landmarks(read_capture(tmp_path)[1], STATIONS[1], "panorama")


def test_rounded_rotations_become_exact(tmp_path):
    content = write_nerfstudio(tmp_path, depth=False)
    for frame in content["frames"]:
        frame["transform_matrix"] = np.round(frame["transform_matrix"], 4).tolist()
    write_json(tmp_path, content)
    rotation = read_capture(tmp_path).camera_to_world[:, :3, :3]
    assert torch.allclose(rotation.mT @ rotation, torch.eye(3), atol=1e-6)


CAMERAS = [Panorama(16, 32), Pinhole(12, 20, 11.5, 12.5, 9.75, 6.25)]


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: camera.kind)
def test_write_capture_round_trip(tmp_path, camera):
    generator = torch.Generator().manual_seed(0)
    size = (camera.height, camera.width)
    frames = []
    for index in range(3):
        image = torch.randint(0, 256, (*size, 3), generator=generator) / 255
        depth = torch.randint(0, 65536, size, generator=generator).double() * 0.002
        pose = look_at(torch.tensor([1.0, index, 2.0]), torch.tensor([0.3, -5.0, 0.1]))
        frames.append(Frame(image, depth.float() if index else None, pose, camera, f"{index:04d}", 0.5 * index))
    assert write_capture(tmp_path / "new" / "capture", camera, iter(frames), depth_unit=0.002).is_file()
    capture = read_capture(tmp_path / "new" / "capture")
    assert capture.name == "capture" and not capture.has_depth
    for read, written in zip(capture, frames, strict=True):
        assert torch.equal(read.image, written.image)
        assert (read.depth is None) if written.depth is None else torch.equal(read.depth, written.depth)
        assert torch.allclose(read.camera_to_world, written.camera_to_world, atol=1e-6)
        assert (read.camera, read.name, read.timestamp) == (camera, written.name, written.timestamp)


def test_write_capture_refuses(tmp_path):
    camera = Panorama(4, 8)
    image, depth, pose = torch.rand(4, 8, 3), torch.ones(4, 8), torch.eye(4)

    def write(camera=camera, image=image, depth=depth, pose=pose, own=None, unit=0.001):
        write_capture(tmp_path, camera, [Frame(image, depth, pose, own or camera, "a")], unit)

    with pytest.raises(ValueError, match="at least one"):
        write_capture(tmp_path, camera, [])
    with pytest.raises(ValueError, match="Panorama or Pinhole"):
        write(camera=Cubemap(4))
    with pytest.raises(ValueError, match=r"frames\[0\]: expected Panorama"):
        write(own=Panorama(8, 16))
    with pytest.raises(ValueError, match=r"frames\[0\].camera_to_world: not rigid"):
        write(pose=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    with pytest.raises(ValueError, match=r"frames\[0\].image: expected shape \[4, 8, 3\]"):
        write(image=torch.rand(3, 4, 8))
    with pytest.raises(ValueError, match=r"frames\[0\].depth: expected shape \[4, 8\]"):
        write(depth=torch.ones(8, 4))
    with pytest.raises(ValueError, match="finite colours"):
        write(image=image.clone().fill_(math.nan))
    with pytest.raises(ValueError, match="some valid depth"):
        write(depth=torch.full((4, 8), math.inf))
    with pytest.raises(ValueError, match=r"100 m does not fit 16 bits of 0.001 m, a unit of 0.0016 does"):
        write(depth=100 * depth)
    with pytest.raises(ValueError, match="depth_unit: expected a positive"):
        write(unit=0.0)
    assert not (tmp_path / "transforms.json").exists()
    write(depth=100 * depth, unit=0.0016)
    assert torch.allclose(read_capture(tmp_path)[0].depth, 100 * depth)


def test_depth_units_are_exact_over_all_16_bits(tmp_path):
    camera = Panorama(256, 512)
    depth = torch.arange(256 * 512).reshape(256, 512).clamp(max=65535).double() * 0.001
    write_capture(tmp_path, camera, [Frame(torch.zeros(256, 512, 3), depth.float(), torch.eye(4), camera, "a")])
    assert torch.equal(read_capture(tmp_path)[0].depth, depth.float())


POSE = torch.eye(4).tolist()
MIRRORED = torch.diag(torch.tensor([1.0, 1, -1, 1])).tolist()
SCALED = torch.diag(torch.tensor([1.5, 1.5, 1.5, 1])).tolist()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"frames": []}, ["expected at least one frame, got none"]),
        ({"frames": None}, ["expected a list of objects under 'frames', got nothing"]),
        ({"frames": [3]}, ["expected a list of objects under 'frames'", "[3]"]),
        ({"w": None}, ["frame 0", "finite number under 'w', got nothing"]),
        ({"h": "64"}, ["frame 0", "finite number under 'h', got '64'"]),
        ({"h": 64.5}, ["frame 0", "whole numbers of pixels"]),
        ({"h": True}, ["finite number under 'h', got True"]),
        ({"w": 10**400}, ["finite number under 'w', got 1000"]),
        ({"w": 100}, ["frame 0", "width must be 2 * height"]),
        ({"w": 120, "h": 60}, ["rgb/0.png", "expected 60x120 (height x width), got 64x128"]),
        ({"camera_model": "OPENCV_FISHEYE"}, ["frame 0", "camera_model", "EQUIRECTANGULAR", "'OPENCV_FISHEYE'"]),
        ({"camera_model": "OPENCV"}, ["frame 0", "'fl_x'"]),
        ({"camera_model": "OPENCV", "fl_x": -1, "fl_y": 1, "cx": 1, "cy": 1}, ["frame 0", "fx must be positive"]),
        ({"k1": 0.1}, ["frame 0", "k1 = 0.1", "undistort"]),
        ({"p2": -1e-5}, ["frame 0", "p2 = -1e-05", "undistort"]),
        ({"depth_type": "z"}, ["frame 0", "depth_type of 'range', got 'z'"]),
        ({"depth_type": "disparity"}, ["frame 0", "'disparity'"]),
        ({"depth_unit_scale_factor": 0}, ["frame 0", "positive depth_unit_scale_factor, got 0"]),
        ({"depth_unit_scale_factor": math.nan}, ["frame 0", "'depth_unit_scale_factor', got nan"]),
        ({"applied_scale": 0.5}, ["frame 0", "applied_scale 1", "0.5"]),
    ],
)
def test_malformed_file(tmp_path, change, parts):
    content = write_nerfstudio(tmp_path, depth_type="range")
    write_json(tmp_path, content | change)
    refused(tmp_path, *parts, *([] if "rgb/0.png" in parts else ["transforms.json"]))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"file_path": None}, ["transforms.json frame 1", "file name under 'file_path', got nothing"]),
        ({"file_path": 7}, ["transforms.json frame 1", "file name under 'file_path', got 7"]),
        ({"file_path": "rgb/9.png"}, ["rgb/9.png", "no such file"]),
        ({"depth_file_path": "depth/9.png"}, ["depth/9.png", "no such file"]),
        ({"depth_file_path": 7}, ["transforms.json frame 1", "'depth_file_path', got 7"]),
        ({"time": "noon"}, ["transforms.json frame 1", "'time', got 'noon'"]),
        ({"transform_matrix": None}, ["transforms.json frame 1", "4 rows of 4 numbers, got nothing"]),
        ({"transform_matrix": POSE[:3]}, ["transforms.json frame 1", "4 rows of 4 numbers"]),
        ({"transform_matrix": [*POSE[:3], [0, 0, 1]]}, ["transforms.json frame 1", "4 rows of 4 numbers"]),
        ({"transform_matrix": [["a"] * 4] * 4}, ["transforms.json frame 1", "4 rows of 4 numbers"]),
        ({"transform_matrix": [[math.nan] * 4] * 4}, ["frame 1 transform_matrix", "NaN or infinite"]),
        ({"transform_matrix": [[1, 0, 0, 1e300], *POSE[1:]]}, ["frame 1 transform_matrix", "NaN or infinite"]),
        ({"transform_matrix": [[1, 0, 0, 10**400], *POSE[1:]]}, ["frame 1", "4 rows of 4 numbers"]),
        ({"transform_matrix": SCALED}, ["frame 1 transform_matrix", "not rigid"]),
        ({"transform_matrix": MIRRORED}, ["frame 1 transform_matrix", "mirrors"]),
    ],
)
def test_malformed_frame(tmp_path, change, parts):
    content = write_nerfstudio(tmp_path, depth_type="range")
    content["frames"][1] |= change
    write_json(tmp_path, content)
    refused(tmp_path, *parts)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"", "JSON file that can be read"),
        (b'{"frames": [', "JSON file that can be read"),
        (b"\xff\xfe\x00", "JSON file that can be read"),
        (b"[" * 100_000, "JSON file that can be read"),
        (b"[1, 2]", "expected a JSON object, got [1, 2]"),
    ],
)
def test_malformed_json(tmp_path, text, part):
    (tmp_path / "transforms.json").write_bytes(text)
    refused(tmp_path, "transforms.json", part)
    refused(tmp_path / "transforms.json", "transforms.json", part)
