"""The command that turns a capture into a world."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from box_world import NUM_FRAMES, box_frame, box_walk, error_of
from PIL import Image

from evoworld.apps.measure import measure
from evoworld.apps.reconstruct import reconstruct
from evoworld.cli import main
from evoworld.data import read_capture
from evoworld.world import Memory


def test_reconstruct_writes_a_world_the_table_and_the_numbers(capture_folder, tmp_path, capsys):
    world, numbers = tmp_path / "new" / "world.safetensors", tmp_path / "numbers.json"
    arguments = ["--out", world, "--voxel-size", 0.1, "--hold-out", 4, "--peer", "--json", numbers]
    assert main(["reconstruct", str(capture_folder), *map(str, arguments)]) == 0
    out = capsys.readouterr().out
    for word in (
        "frames observed",
        "voxels",
        "MB",
        "seconds a frame",
        "PSNR",
        "SSIM",
        "AbsRel",
        "1.25",
        "reprojection",
    ):
        assert word in out
    report = json.loads(numbers.read_text())
    assert (report["frames"], report["held_out"]) == (NUM_FRAMES - 2, 2)
    memory = Memory.load(world)
    assert report["voxels"] == memory.num_voxels > 0
    assert report["quality"]["psnr"] > 20 and report["quality"]["abs_rel"] < 0.1 and report["quality"]["delta"] > 0.95
    assert report["peer"]["psnr"] < report["quality"]["psnr"]  # its holes are black


def test_fit_improves_the_held_out_frames(capture_folder):
    capture = read_capture(capture_folder)
    _, before = reconstruct(capture, voxel_size=0.2, hold_out=4)
    _, after = reconstruct(capture, voxel_size=0.2, hold_out=4, fit_steps=20)
    assert after.fit_steps == 20 and after.fit_seconds > 0
    assert after.quality.psnr > before.quality.psnr


def test_without_held_out_frames_nothing_is_measured(capture_folder, tmp_path, capsys):
    arguments = [
        "--out",
        str(tmp_path / "w.safetensors"),
        "--hold-out",
        "0",
        "--max-frames",
        "2",
        "--voxel-size",
        "0.2",
    ]
    assert main(["reconstruct", str(capture_folder), *arguments]) == 0
    assert "PSNR" not in capsys.readouterr().out
    assert len(Memory.load(tmp_path / "w.safetensors").poses) == 2


def test_measure_is_the_mean_over_the_frames():
    frames = [box_frame(pose) for pose in box_walk(3)]
    errors = iter((0.1, 0.1, 0.2))
    quality = measure(frames, lambda frame: (frame.image + next(errors), frame.depth * 1.5))
    assert quality.psnr == pytest.approx((20 + 20 + 13.9794) / 3, abs=1e-3)
    assert quality.abs_rel == pytest.approx(0.5, abs=1e-3) and quality.delta == 0
    with pytest.raises(ValueError, match="at least one"):
        measure([], lambda frame: (frame.image, frame.depth))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--voxel-size", "0"], "voxel"),
        (["--voxel-size", "nan"], "voxel"),
        (["--hold-out", "1"], "hold_out"),
        (["--max-frames", "0"], "--max-frames"),
        (["--fit", "-1"], "fit_steps"),
    ],
)
def test_bad_numbers_are_refused(capture_folder, tmp_path, capsys, options, message):
    world = tmp_path / "w.safetensors"
    code, err = error_of(capsys, "reconstruct", capture_folder, "--out", world, *options)
    assert code == 2 and message in err
    assert not world.exists()


def test_bad_captures_are_refused_and_the_old_world_stays(capture_folder, tmp_path, capsys):
    world = tmp_path / "w.safetensors"
    world.write_bytes(b"precious")
    broken = shutil.copytree(capture_folder, tmp_path / "broken")
    (broken / "rgb" / "0003.png").write_bytes((broken / "rgb" / "0003.png").read_bytes()[:200])
    without_depth = shutil.copytree(capture_folder, tmp_path / "without_depth")
    content = json.loads((without_depth / "transforms.json").read_text())
    for frame in content["frames"]:
        del frame["depth_file_path"]
    (without_depth / "transforms.json").write_text(json.dumps(content))
    for capture, message in (
        (tmp_path / "nowhere", "nowhere"),
        (tmp_path, "not a capture"),
        (broken, "0003"),
        (without_depth, "expected depth"),
    ):
        code, err = error_of(capsys, "reconstruct", capture, "--out", world)
        assert code == 2 and message in err
    assert world.read_bytes() == b"precious"


def test_a_place_that_cannot_be_written_is_refused_before_the_work(capture_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Memory, "observe", lambda *_: pytest.fail("worked before it looked"))
    (tmp_path / "file").write_text("")
    assert "folder" in error_of(capsys, "reconstruct", capture_folder, "--out", tmp_path)[1]
    assert "file" in error_of(capsys, "reconstruct", capture_folder, "--out", tmp_path / "file" / "w.safetensors")[1]
    options = ("--out", tmp_path / "w.safetensors", "--json", tmp_path)
    assert "folder" in error_of(capsys, "reconstruct", capture_folder, *options)[1]


def test_an_error_while_observing_names_the_frame(capture_folder, tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise ValueError("depth: no valid value")

    monkeypatch.setattr(Memory, "observe", refuse)
    err = error_of(capsys, "reconstruct", capture_folder, "--out", tmp_path / "w.safetensors")[1]
    assert "frame 0000: depth: no valid value" in err


def test_ctrl_c_leaves_no_half_world(capture_folder, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Memory, "observe", interrupt)
    assert main(["reconstruct", str(capture_folder), "--out", str(tmp_path / "w.safetensors")]) == 130
    assert capsys.readouterr().err == "evoworld: interrupted\n"
    assert not list(tmp_path.iterdir())


def test_perspective_captures_work(tmp_path, capsys):
    from evoworld.data import write_capture
    from evoworld.geometry import Pinhole

    camera = Pinhole.from_fov(24, 32, 1.6)
    write_capture(tmp_path / "views", camera, (box_frame(pose, camera) for pose in box_walk(4)))
    arguments = ["--out", str(tmp_path / "w.safetensors"), "--voxel-size", "0.1", "--hold-out", "0"]
    assert main(["reconstruct", str(tmp_path / "views"), *arguments]) == 0
    view = Memory.load(tmp_path / "w.safetensors").query(camera, box_walk(4)[0])
    truth = box_frame(box_walk(4)[0], camera)
    error = (view.depth - camera.range_from_depth(truth.depth)).abs() / truth.depth
    assert error.median() < 0.05


def test_the_command_as_a_program(capture_folder, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "picture.png")
    command = [sys.executable, "-m", "evoworld.cli", "reconstruct", str(tmp_path / "picture.png"), "--out", "w"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    command = [*command[:4], str(capture_folder), "--out", "w.safetensors", "--voxel-size", "0.2", "--max-frames", "2"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0 and "World: w.safetensors" in result.stdout
    assert torch.isfinite(Memory.load(tmp_path / "w.safetensors").query(*_camera_and_pose()).features).all()


def _camera_and_pose():
    frame = box_frame(box_walk()[0])
    return frame.camera, frame.camera_to_world
