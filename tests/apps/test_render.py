"""The command that walks through a world."""

import json
import math

import numpy as np
import pytest
import torch
from box_world import CAMERA, HALF_SIZE, box_frame, box_walk, error_of
from PIL import Image

from evoworld.apps.render import camera_of, short_walk, walk_radius
from evoworld.cli import main
from evoworld.data import read_capture, write_capture
from evoworld.geometry import Panorama, Pinhole
from evoworld.world import Memory

av = pytest.importorskip("av")


def render(world, out, *options):
    return main(["render", str(world), "--out", str(out), "--height", "32", *map(str, options)])


def test_a_rendered_orbit_is_a_capture_and_a_video(world_file, tmp_path):
    out, video = tmp_path / "walk", tmp_path / "walk.mp4"
    assert render(world_file, out, "--frames", 5, "--video", video, "--fps", 10) == 0
    capture = read_capture(out)
    assert len(capture) == 5 and capture.camera == Panorama(32, 64) and capture.has_depth
    memory = Memory.load(world_file)
    for index, pose in enumerate(short_walk(memory, 5, turn=False)):
        frame, view = capture[index], memory.query(CAMERA, pose)
        torch.testing.assert_close(frame.camera_to_world, pose, atol=1e-5, rtol=0)
        torch.testing.assert_close(frame.image, view.features.clamp(0, 1), atol=0.5 / 255 + 1e-3, rtol=0)
        torch.testing.assert_close(frame.depth, view.depth, atol=1e-3, rtol=1e-3)
        assert frame.timestamp == pytest.approx(index / 10)
        with Image.open(out / "rgb" / f"{index:04d}.png") as image:
            assert "equirectangular" in image.info["XML:com.adobe.xmp"]
        with Image.open(out / "depth_preview" / f"{index:04d}.png") as image:
            assert image.size == (64, 32)
    with av.open(str(video)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 5 and (frames[0].height, frames[0].width) == (32, 64)
    assert b"sv3d" in video.read_bytes()
    error = frames[2].to_ndarray(format="rgb24") / 255 - capture[2].image.numpy()
    assert np.square(error).mean() < 0.01


def test_a_rendering_can_be_rendered_over_and_followed(world_file, tmp_path):
    out = tmp_path / "walk"
    assert render(world_file, out, "--frames", 3) == 0
    assert render(world_file, out, "--frames", 2) == 0
    assert len(read_capture(out)) == 2
    assert render(world_file, tmp_path / "again", "--trajectory", out) == 0
    torch.testing.assert_close(read_capture(tmp_path / "again").camera_to_world, read_capture(out).camera_to_world)


def test_the_poses_of_the_capture_show_what_it_saw(world_file, capture_folder, tmp_path):
    assert render(world_file, tmp_path / "walk", "--trajectory", capture_folder) == 0
    walk, capture = read_capture(tmp_path / "walk"), read_capture(capture_folder)
    assert len(walk) == len(capture)
    for seen, shown in zip(capture, walk, strict=True):
        assert (seen.image - shown.image).square().mean() < 0.01
        assert ((seen.depth - shown.depth).abs() / seen.depth).mean() < 0.1


def test_perspective_views_along_a_path_file(world_file, tmp_path):
    path = tmp_path / "path.json"
    path.write_text(json.dumps({"keys": [{"position": [-0.3, 0, 0]}, {"position": [0.3, 0, 0], "yaw": 30}]}))
    options = ("--camera", "pinhole", "--fov", 70, "--frames", 4, "--trajectory", path, "--video", tmp_path / "v.mp4")
    assert render(world_file, tmp_path / "walk", *options) == 0
    capture = read_capture(tmp_path / "walk")
    assert isinstance(capture.camera, Pinhole) and capture.camera.height == 32 and capture.camera.width % 2 == 0
    assert 2 * math.atan(capture.camera.width / 2 / capture.camera.fx) == pytest.approx(math.radians(70), abs=1e-6)
    frame = capture[0]  # looks along +x, straight at a wall
    assert float(frame.depth[16, capture.camera.width // 2]) == pytest.approx(float(HALF_SIZE[0]) + 0.3, abs=0.1)
    assert b"GPano" not in (tmp_path / "walk" / "rgb" / "0000.png").read_bytes()
    assert b"sv3d" not in (tmp_path / "v.mp4").read_bytes()


def test_a_view_of_nothing_is_written_without_depth(world_file, tmp_path):
    """Outside of the box, looking away from it."""
    path = tmp_path / "path.json"
    path.write_text(json.dumps({"keys": [{"position": [30, 0, 0]}], "frames": 1}))
    options = ("--camera", "pinhole", "--fov", 40, "--trajectory", path)
    assert render(world_file, tmp_path / "walk", *options) == 0
    assert read_capture(tmp_path / "walk")[0].depth is None


def test_the_short_walk_stays_in_the_free_space(world_file):
    memory = Memory.load(world_file)
    walk = short_walk(memory, 12, turn=True)
    assert walk.shape == (12, 4, 4)
    assert (walk[:, :3, 3].abs() < HALF_SIZE - 0.2).all()
    assert 0.2 < walk_radius(memory, torch.eye(4)) < 0.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--height", 31), "--height"),
        (("--height", 2), "--height"),
        (("--frames", 0), "frames"),
        (("--fps", 0, "--video", "v.mp4"), "fps"),
        (("--video", "v.avi"), ".mp4"),
        (("--camera", "pinhole", "--fov", 180), "--fov"),
        (("--trajectory", "nowhere"), "--trajectory"),
        (("--trajectory", "nowhere.json"), "nowhere.json"),
    ],
)
def test_bad_options_are_refused(world_file, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    _, err = error_of(capsys, "render", world_file, "--out", tmp_path / "walk", *options)
    assert message in err
    assert not list(tmp_path.rglob("*.png"))


def test_bad_worlds_are_refused(world_file, tmp_path, capsys):
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(world_file.read_bytes()[:-100])
    (tmp_path / "text.safetensors").write_text("no world")
    for name in ("nowhere.safetensors", "truncated.safetensors", "text.safetensors"):
        _, err = error_of(capsys, "render", tmp_path / name, "--out", tmp_path / "walk")
        assert name in err


def test_a_capture_is_not_overwritten_by_a_rendering(world_file, tmp_path, capsys):
    write_capture(tmp_path / "capture", CAMERA, [box_frame(box_walk()[0])])
    before = (tmp_path / "capture" / "transforms.json").read_bytes()
    assert "not a rendering" in error_of(capsys, "render", world_file, "--out", tmp_path / "capture")[1]
    assert (tmp_path / "capture" / "transforms.json").read_bytes() == before
    (tmp_path / "file").write_text("")
    assert "expected a folder" in error_of(capsys, "render", world_file, "--out", tmp_path / "file")[1]


def test_an_interrupted_rendering_is_not_taken_for_a_whole_one(world_file, tmp_path, capsys, monkeypatch):
    assert render(world_file, tmp_path / "walk", "--frames", 2, "--video", tmp_path / "v.mp4") == 0
    video = (tmp_path / "v.mp4").read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("evoworld.apps.render.depth_preview", interrupt)
    assert render(world_file, tmp_path / "walk", "--frames", 2, "--video", tmp_path / "v.mp4") == 130
    assert not (tmp_path / "walk" / "transforms.json").exists()
    assert (tmp_path / "v.mp4").read_bytes() == video
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.mp4", "walk"]


def test_camera_of_the_options():
    assert camera_of("pinhole", 90, 90.0) == Pinhole.from_fov(90, 160, math.pi / 2)
