import math

import numpy as np
import pytest
from landmarks import STATIONS, assert_sees_landmarks, picture, refused, save_depth, save_image

from evoworld.data import read_capture
from evoworld.geometry import Panorama

HEADER = "Frame,PosX,PosY,PosZ,RotX,RotY,RotZ"


def unity_row(number, station):
    """Unity: left-handed, y up, z ahead. RotY turns from z to x (clockwise from above), a positive RotX looks down."""
    x, y, z = station.position
    return f"{number},{x},{z},{y},{-math.degrees(station.pitch)},{90 - math.degrees(station.yaw)},0.0"


def write_episode(folder, stations=STATIONS, first=1, suffix=".png", depth=None):
    rows = [HEADER]
    for number, station in enumerate(stations, start=first):
        image, distance, _ = picture(station, "panorama")
        save_image(folder / "panorama" / f"{number:03d}{suffix}", image)
        if depth:
            save_depth(folder / "depth" / f"{number:03d}{depth}", distance, unit=1.0 if depth == ".npy" else 0.001)
        rows.append(unity_row(number, station))
    (folder / "camera_poses.txt").write_text("\r\n".join(rows) + "\r\n\r\n")


@pytest.mark.parametrize("depth", [None, ".png", ".npy"])
def test_colours_and_depth_land_where_they_are(tmp_path, depth):
    write_episode(tmp_path, depth=depth)
    capture = read_capture(tmp_path)
    assert capture.camera == Panorama(64, 128) and capture.has_depth == bool(depth)
    assert [frame.name for frame in capture] == ["001", "002", "003"]
    for frame, station in zip(capture, STATIONS, strict=True):
        assert_sees_landmarks(frame, station, "panorama", with_depth=bool(depth))


def test_folder_of_episodes_in_order_of_their_numbers(tmp_path):
    write_episode(tmp_path / "episode_10", STATIONS[2:])
    write_episode(tmp_path / "episode_9", STATIONS[:2], first=0)
    capture = read_capture(tmp_path)
    assert [frame.name for frame in capture] == ["episode_9_000", "episode_9_001", "episode_10_001"]
    for frame, station in zip(capture, STATIONS, strict=True):
        assert_sees_landmarks(frame, station, "panorama", with_depth=False)


def test_jpeg_panoramas_and_numbers_beyond_the_padding(tmp_path):
    write_episode(tmp_path, first=999, suffix=".jpg")
    assert [frame.name for frame in read_capture(tmp_path)] == ["999", "1000", "1001"]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("1,0,0,0,0,0", ["line 2", "a frame number and 6 numbers"]),
        ("1,0,0,0,0,0,0,0", ["line 2", "a frame number and 6 numbers"]),
        ("one,0,0,0,0,0,0", ["line 2", "a frame number and 6 numbers"]),
        ("-1,0,0,0,0,0,0", ["line 2", "a frame number and 6 numbers"]),
        ("1,0,0,x,0,0,0", ["line 2", "a frame number and 6 numbers", "'1,0,0,x,0,0,0'"]),
        ("1,0,0,nan,0,0,0", ["line 2", "NaN or infinite"]),
        ("1,0,0,0,inf,0,0", ["line 2", "NaN or infinite"]),
        ("1,0,0,0,0,0,0\n1,0,0,0,0,0,0", ["line 3", "frame 1 again"]),
        ("", ["at least one frame, got none"]),
    ],
)
def test_malformed_poses(tmp_path, line, parts):
    write_episode(tmp_path)
    (tmp_path / "camera_poses.txt").write_text(f"{HEADER}\n{line}\n")
    refused(tmp_path, "camera_poses.txt", *parts)


def test_malformed_header(tmp_path):
    for text in ("", "1,0,0,0,0,0,0\n"):
        (tmp_path / "camera_poses.txt").write_text(text)
        refused(tmp_path, "camera_poses.txt", "header Frame,PosX")
    (tmp_path / "camera_poses.txt").write_bytes(b"\xff\xff")
    refused(tmp_path, "camera_poses.txt", "text file that can be read")


def test_missing_and_odd_files(tmp_path):
    write_episode(tmp_path, depth=".npy")
    depth = tmp_path / "depth" / "002.npy"
    np.save(depth, np.ones((32, 64), np.float32))
    refused(tmp_path, "depth/002.npy", "expected 64x128 (height x width), got 32x64")
    depth.unlink()
    refused(tmp_path, "depth/002.png", "no such file, nor 002.npy")
    image = tmp_path / "panorama" / "001.png"
    save_image(image, np.zeros((64, 64, 3), np.uint8))
    refused(tmp_path, "panorama/001.png", "width must be 2 * height")
    image.unlink()
    refused(tmp_path, "panorama/001.png", "no such file, nor 001.jpg")
    for path in (tmp_path / "panorama").iterdir():
        path.unlink()
    (tmp_path / "panorama").rmdir()
    refused(tmp_path, "panorama/001.png", "no such file")
