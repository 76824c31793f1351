import math
import struct
import sys

import numpy as np
import pytest
from landmarks import FOCAL, SIZE, STATIONS, assert_sees_landmarks, picture, refused, save_depth, save_image

from evoworld.data import CaptureError, read_capture, read_colmap
from evoworld.geometry import Pinhole

pycolmap = pytest.importorskip("pycolmap")

PARAMS = {
    "EQUIRECTANGULAR": (SIZE[1], SIZE[0]),
    "PINHOLE": FOCAL,
    "SIMPLE_PINHOLE": (FOCAL[0], *FOCAL[2:]),
    "SIMPLE_RADIAL": (FOCAL[0], *FOCAL[2:], 0.1),
}


def write_model(folder, model="EQUIRECTANGULAR", binary=True, depth=None, names=("a/1.png", "a/2.png", "b/1.png")):
    """The stations as a COLMAP model: world-to-camera, rows right, down, forward; the last image stays unplaced."""
    kind = "panorama" if model == "EQUIRECTANGULAR" else "pinhole"
    reconstruction = pycolmap.Reconstruction()
    camera = pycolmap.Camera(model=model, width=SIZE[1], height=SIZE[0], params=PARAMS[model], camera_id=1)
    reconstruction.add_camera_with_trivial_rig(camera)
    for number, (name, station) in reversed(list(enumerate(zip(names, STATIONS, strict=True), start=1))):
        image, distance, z = picture(station, kind)
        save_image(folder / "images" / name, image)
        if depth:
            path = (folder / "depth" / name).with_suffix(depth)
            save_depth(path, distance if kind == "panorama" else z, unit=1.0 if depth == ".npy" else 0.001)
        right, up, forward = station.axes
        rotation = np.stack([right, -up, forward])
        matrix = np.concatenate([rotation, -rotation @ np.array(station.position)[:, None]], 1)
        entry = pycolmap.Image(name=name, camera_id=1, image_id=number)
        reconstruction.add_image_with_trivial_frame(entry, pycolmap.Rigid3d(matrix))
    reconstruction.add_image_with_trivial_frame(pycolmap.Image(name="unplaced.png", camera_id=1, image_id=9))
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True, exist_ok=True)
    (reconstruction.write_binary if binary else reconstruction.write_text)(sparse)


@pytest.mark.parametrize(("model", "kind"), [("EQUIRECTANGULAR", "panorama"), ("PINHOLE", "pinhole")])
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("depth", [None, ".png", ".npy"])
def test_colours_and_depth_land_where_they_are(tmp_path, model, kind, binary, depth):
    write_model(tmp_path, model, binary, depth)
    capture = read_capture(tmp_path)
    assert capture.has_depth == bool(depth)
    assert [frame.name for frame in capture] == ["a_1", "a_2", "b_1"]
    for frame, station in zip(capture, STATIONS, strict=True):
        assert_sees_landmarks(frame, station, kind, with_depth=bool(depth))


def test_simple_pinhole(tmp_path):
    write_model(tmp_path, "SIMPLE_PINHOLE", names=("1.png", "2.png", "3.png"))
    capture = read_capture(tmp_path)
    assert capture.camera == Pinhole(*SIZE, FOCAL[0], FOCAL[0], *FOCAL[2:])
    assert [frame.name for frame in capture] == ["1", "2", "3"]


def test_text_model_of_older_versions_in_sparse_itself(tmp_path):
    write_model(tmp_path, names=("1.png", "2.png", "3.png"))
    for path in (tmp_path / "sparse" / "0").iterdir():
        path.unlink()
    (tmp_path / "sparse" / "0").rmdir()
    (tmp_path / "sparse" / "cameras.txt").write_text(f"# cameras\n4 PINHOLE {SIZE[1]} {SIZE[0]} 34 30 66 30\n")
    # Half a turn about the camera's y axis: x = -X + 1, y = Y + 2, z = -Z + 3, so the centre is (1, -2, 3).
    (tmp_path / "sparse" / "images.txt").write_text("# images\n7 0 0 1 0 1 2 3 4 2.png\n\n")
    (tmp_path / "sparse" / "points3D.txt").write_text("")
    (frame,) = read_capture(tmp_path)
    expected = [[-1, 0, 0, 1], [0, 1, 0, -2], [0, 0, -1, 3], [0, 0, 0, 1]]
    assert np.allclose(frame.camera_to_world, expected, atol=1e-6) and frame.camera == Pinhole(*SIZE, *FOCAL)


def test_distorted_cameras_are_refused(tmp_path):
    write_model(tmp_path, "SIMPLE_RADIAL")
    refused(tmp_path, "a/1.png", "SIMPLE_RADIAL", "undistort")


def test_missing_files(tmp_path):
    write_model(tmp_path, depth=".png")
    (tmp_path / "depth" / "a" / "2.png").unlink()
    refused(tmp_path, "depth/a/2.png", "no such file")
    (tmp_path / "images" / "a" / "1.png").unlink()
    write_model(tmp_path / "other")
    (tmp_path / "other" / "images" / "b" / "1.png").unlink()
    refused(tmp_path / "other", "images/b/1.png", "no such file")
    with pytest.raises(CaptureError, match="expected a COLMAP model"):
        read_colmap(tmp_path / "images")


def test_damaged_model(tmp_path):
    write_model(tmp_path, binary=False)
    path = tmp_path / "sparse" / "0" / "cameras.txt"
    path.write_text("1 PINHOLE 64")
    refused(tmp_path, "sparse/0", "COLMAP model that can be read")


def test_truncated_model(tmp_path):
    """pycolmap itself takes what lies in memory for the missing bytes."""
    write_model(tmp_path)
    path = tmp_path / "sparse" / "0" / "cameras.bin"
    path.write_bytes(path.read_bytes()[:-3])
    refused(tmp_path, "sparse/0/cameras.bin", "the file is truncated")


@pytest.mark.parametrize("binary", [False, True])
def test_points_are_not_read(tmp_path, binary):
    write_model(tmp_path, binary=binary)
    (tmp_path / "sparse" / "0" / ("points3D.bin" if binary else "points3D.txt")).write_bytes(b"\xff" * 9)
    assert len(read_capture(tmp_path)) == len(STATIONS)


def test_model_without_placed_images(tmp_path):
    write_model(tmp_path, binary=False)
    for name in ("frames.txt", "images.txt"):
        (tmp_path / "sparse" / "0" / name).write_text("")
    refused(tmp_path, "sparse/0", "at least one frame, got none")


def test_not_a_number_in_a_pose(tmp_path):
    write_model(tmp_path)
    for name in ("frames.bin", "images.bin"):
        path = tmp_path / "sparse" / "0" / name
        height = struct.pack("<d", STATIONS[0].position[2])  # the translation's y: this station is not pitched
        assert height in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(height, struct.pack("<d", math.nan)))
    refused(tmp_path, "sparse/0 image a/1.png", "NaN or infinite")


def test_without_pycolmap(tmp_path, monkeypatch):
    write_model(tmp_path)
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    refused(tmp_path, "sparse/0", "pip install 'evoworld[colmap]'")
