import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from landmarks import SIZE, STATIONS, assert_sees_landmarks, refused, save_image, write_nerfstudio
from PIL import Image

from evoworld.data import Capture, CaptureError, read_capture
from evoworld.geometry import Panorama, invert_pose, transform_points

LIVING_ROOM = Path(__file__).parents[2] / "examples" / "living_room"


@pytest.fixture
def folder(tmp_path):
    write_nerfstudio(tmp_path, depth_type="range")
    return tmp_path


def test_frames_are_what_the_library_expects(folder):
    frame = read_capture(str(folder))[-1]
    assert frame.image.shape == (*SIZE, 3) and frame.image.dtype == torch.float32
    assert frame.image.min() == 0 and frame.image.max() == 1
    assert frame.depth.shape == SIZE and frame.depth.dtype == torch.float32
    assert frame.camera_to_world.shape == (4, 4) and frame.camera_to_world.dtype == torch.float32
    assert frame.camera == Panorama(*SIZE) and frame.name == "2" and frame.timestamp is None


def test_images_are_read_when_asked_for(folder):
    capture = read_capture(folder)
    for path in (folder / "rgb").iterdir():
        path.write_bytes(b"")
    assert capture.camera_to_world.shape == (3, 4, 4)
    with pytest.raises(CaptureError, match=r"rgb/0\.png"):
        capture[0]


def test_sequence(folder):
    capture = read_capture(folder)
    assert capture.name == folder.name and len(capture) == 3
    assert_sees_landmarks(capture[-2], STATIONS[1], "panorama")
    tail = capture[1:]
    assert isinstance(tail, Capture) and [frame.name for frame in tail] == ["1", "2"]
    assert [frame.name for frame in tail.frames] == ["1", "2"]
    assert torch.equal(tail[0].camera_to_world, capture.camera_to_world[1])
    with pytest.raises(IndexError):
        capture[3]
    assert repr(capture) == f"Capture('{folder.name}', 3 frames of Panorama(height=64, width=128) with depth)"


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.3, 0.6, 0.95])
def test_truncated_image(folder, suffix, part):
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, {"png": "PNG", "jpg": "JPEG"}[suffix])
    path = folder / "rgb" / "1.png"  # readers go by content, not by name
    path.write_bytes(stream.getvalue())
    assert len(list(read_capture(folder))) == 3
    path.write_bytes(stream.getvalue()[: int(part * len(stream.getvalue()))])
    refused(folder, "rgb/1.png", "expected an image that can be read")


@pytest.mark.parametrize("suffix", ["png", "npy"])
@pytest.mark.parametrize("part", [0.0, 0.05, 0.3, 0.6, 0.95])
def test_truncated_depth(tmp_path, suffix, part):
    write_nerfstudio(tmp_path, depth_type="range", suffix=f".{suffix}")
    path = tmp_path / "depth" / f"1.{suffix}"
    if suffix == "png":
        noise = np.random.default_rng(0).integers(0, 65536, SIZE, dtype=np.uint16)
        Image.fromarray(noise).save(path)
        assert torch.equal(read_capture(tmp_path)[1].depth, torch.from_numpy(noise * 0.001).float())
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    refused(tmp_path, f"depth/1.{suffix}", "that can be read")


def test_missing_damaged_and_unreadable_image(folder):
    path = folder / "rgb" / "1.png"
    path.write_bytes(b"not an image at all")
    refused(folder, "rgb/1.png", "expected an image that can be read")
    path.unlink()
    refused(folder, "rgb/1.png", "no such file")
    path.mkdir()
    refused(folder, "rgb/1.png", "expected an image that can be read")
    path.rmdir()
    path.symlink_to(path)
    refused(folder, "rgb/1.png", "expected an image that can be read")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="file permissions do not bind this user")
def test_files_without_permission(folder):
    (folder / "rgb" / "1.png").chmod(0)
    refused(folder, "rgb/1.png", "Permission denied")
    (folder / "rgb").chmod(0)
    refused(folder, "rgb/0.png", "Permission denied")
    (folder / "rgb").chmod(0o755)


def test_wrong_size(folder):
    save_image(folder / "rgb" / "2.png", np.zeros((32, 64, 3), np.uint8))
    refused(folder, "rgb/2.png", "expected 64x128 (height x width), got 32x64")


def test_size_that_changes_after_the_door(folder):
    capture = read_capture(folder)
    save_image(folder / "rgb" / "2.png", np.zeros((32, 64, 3), np.uint8))
    with pytest.raises(CaptureError, match="expected 64x128"):
        capture[2]


def test_grey_and_transparent_images(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 4), dtype=np.uint8)
    save_image(folder / "rgb" / "0.png", pixels)
    save_image(folder / "rgb" / "1.png", pixels[..., 0])
    save_image(folder / "rgb" / "2.png", pixels[..., 0].astype(np.uint16))
    capture = read_capture(folder)
    assert torch.equal(capture[0].image, torch.from_numpy(pixels[..., :3]) / 255)
    assert torch.equal(capture[1].image, torch.from_numpy(pixels[..., :1]).expand(-1, -1, 3) / 255)
    with pytest.raises(CaptureError, match=r"rgb/2\.png.*8 bits a channel"):
        capture[2]


def test_depth_of_the_wrong_kind(tmp_path):
    write_nerfstudio(tmp_path, depth_type="range", suffix=".npy")
    path = tmp_path / "depth" / "1.npy"
    for array, part in [
        (np.ones((*SIZE, 2)), "shape [64, 128, 2]"),
        (np.ones(SIZE, complex), "array of numbers"),
        (np.full(SIZE, None), "that can be read"),
        (np.ones((8, 8)), "expected 64x128"),
    ]:
        np.save(path, array)
        refused(tmp_path, "depth/1.npy", part)
    with path.open("wb") as file:
        np.savez(file, np.ones(SIZE))
    refused(tmp_path, "depth/1.npy", "archive")
    write_nerfstudio(tmp_path, depth_type="range")
    save_image(tmp_path / "depth" / "1.png", np.ones(SIZE, np.uint8))
    refused(tmp_path, "depth/1.png", "16-bit greyscale")


def test_invalid_depth_is_nothing_and_nothing_else_is_refused(tmp_path):
    write_nerfstudio(tmp_path, depth_type="range", suffix=".npy")
    depth = np.full((*SIZE, 1), np.nan, np.float32)
    depth[0, :3, 0] = np.inf, -np.inf, -2000
    np.save(tmp_path / "depth" / "1.npy", depth)
    refused(tmp_path, "depth/1.npy", "expected some valid depth")
    depth[5, 7] = 2000
    np.save(tmp_path / "depth" / "1.npy", depth)
    read = read_capture(tmp_path)[1].depth
    assert read[5, 7] == 2 and read.sum() == 2


def test_not_a_capture(tmp_path):
    (tmp_path / "rgb").mkdir()
    (tmp_path / "note.txt").write_text("no")
    for path in (tmp_path, tmp_path / "rgb", tmp_path / "note.txt", tmp_path / "nowhere"):
        refused(path, str(path), "transforms.json (nerfstudio)", "camera_poses.txt", "sparse/0")
    refused(tmp_path / "nowhere.json", "no such file")


@pytest.mark.parametrize(("first", "second"), [(0, 4), (12, 9)])
def test_living_room_frames_agree(first, second):
    """Points of one frame, seen from another, lie at that frame's depth (unless something hides them)."""
    capture = read_capture(LIVING_ROOM)
    assert len(capture) == 32 and capture.has_depth
    one, other = capture[first], capture[second]
    origins, directions = one.camera.rays(one.camera_to_world)
    points = (origins + one.depth.reshape(-1, 1) * directions)[::7]
    seen = transform_points(invert_pose(other.camera_to_world), points)
    u, v = other.camera.project(seen).long().unbind(-1)
    relative = (other.depth[v, u] / seen.norm(dim=-1) - 1).abs()
    assert relative.median() < 0.005
    assert relative.quantile(0.75) < 0.03
    assert (other.image[v, u] - one.image.reshape(-1, 3)[::7]).abs().median() < 0.03
