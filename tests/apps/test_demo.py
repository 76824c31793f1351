"""The demonstration, on a capture small enough for a test."""

import pytest
import torch
from box_world import CAMERA, box_frame, box_walk
from PIL import Image

from evoworld.apps import demo
from evoworld.cli import main
from evoworld.data import read_capture, write_capture

pytest.importorskip("av")


def test_the_demo_writes_all_it_says(capture_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "STILL_CAMERA", demo.Pinhole.from_fov(24, 32, 1.5))
    options = ["--capture", str(capture_folder), "--frames", "4", "--height", "32", "--out", str(tmp_path / "out")]
    assert main(["demo", *options]) == 0
    said = capsys.readouterr().out
    for name in ("world.safetensors", "walk.mp4", "walk", "stills", "contact_sheet.png"):
        assert str(tmp_path / "out" / name) in said
        assert (tmp_path / "out" / name).exists()
    assert len(read_capture(tmp_path / "out" / "walk")) == 4
    assert len(list((tmp_path / "out" / "stills").glob("*.jpg"))) == 2 * demo.STILLS
    assert b"equirectangular" in (tmp_path / "out" / "stills" / "panorama_1.jpg").read_bytes()
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.width == 1600


def test_the_example_is_found_in_the_repository():
    assert len(read_capture(demo.find_example())) == 32


def test_without_the_repository_the_demo_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("evoworld.__file__", str(tmp_path / "site-packages" / "evoworld" / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 1
    assert "--capture" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_walk_follows_a_closed_capture_and_looks_one_way(capture_folder):
    walk = demo.walk_along(read_capture(capture_folder), 24)
    distance = torch.cdist(walk[:, :3, 3], box_walk()[:, :3, 3]).amin(1)
    assert walk.shape == (24, 4, 4) and distance.max() < 0.3
    torch.testing.assert_close(walk[:, :3, :3], walk[:1, :3, :3].expand(24, 3, 3), atol=1e-5, rtol=0)
    assert (walk.roll(-1, 0) - walk)[:, :3, 3].norm(dim=-1).max() < 0.3


def test_the_walk_goes_there_and_back_where_the_capture_is_open(tmp_path):
    poses = box_walk()[:5]
    write_capture(tmp_path / "open", CAMERA, (box_frame(pose) for pose in poses))
    walk = demo.walk_along(read_capture(tmp_path / "open"), 32)
    assert torch.cdist(walk[:, :3, 3], poses[:, :3, 3]).amin(1).max() < 0.25
    torch.testing.assert_close(walk[16, :3, 3], poses[4, :3, 3], atol=1e-4, rtol=0)
    torch.testing.assert_close(walk[8, :3, 3], walk[24, :3, 3], atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_frames", [1, 2])
def test_the_walk_along_a_tiny_capture(tmp_path, num_frames):
    write_capture(tmp_path / "tiny", CAMERA, (box_frame(pose) for pose in box_walk()[:num_frames]))
    assert demo.walk_along(read_capture(tmp_path / "tiny"), 3).shape == (3, 4, 4)
