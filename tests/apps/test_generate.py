"""The command that makes worlds: what it writes, what it refuses, and what is left when it is stopped."""

import argparse
import json
import os
import signal

import numpy as np
import pytest
import torch
from box_world import HALF_SIZE, box_frame
from PIL import Image
from tiny_world import tiny_model

from evoworld.apps import generate, generated
from evoworld.apps.trajectories import level_pose
from evoworld.data import read_capture
from evoworld.geometry import Panorama
from evoworld.world import Memory
from evoworld.world.evolve import World

av = pytest.importorskip("av")


def run(*options):
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    return generate.run(parser.parse_args([str(option) for option in options]))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small.safetensors"
    tiny_model().save(path)
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A panorama of the box."""
    path = tmp_path_factory.mktemp("photos") / "box.png"
    image = box_frame(level_pose(torch.zeros(3), torch.tensor(0.0)), Panorama(32, 64)).image
    Image.fromarray((image * 255).round().byte().numpy()).save(path)
    return path


@pytest.fixture(scope="module")
def made(model_file, photo, tmp_path_factory):
    """A finished run; tests must not change it."""
    out = tmp_path_factory.mktemp("made") / "out"
    assert (
        run("--image", photo, "--prompt", "a box", "--model", model_file, "--frames", 5, "--steps", 1, "--out", out)
        == 0
    )
    return out


def test_it_writes_all_it_says(made, photo):
    capture = read_capture(made / "walk")
    assert len(capture) == 5 and capture.camera == Panorama(16, 32) and capture.has_depth
    assert "equirectangular" in Image.open(made / "walk" / "rgb" / "0000.png").info["XML:com.adobe.xmp"]
    given = np.asarray(Image.open(photo).resize((32, 16), Image.Resampling.BOX)) / 255
    assert np.abs(capture[0].image.numpy() - given).mean() < 0.02, "the first frame is the picture"
    with av.open(str(made / "walk.mp4")) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 5 and frames[0].height == 512 and b"sv3d" in (made / "walk.mp4").read_bytes()
    assert len(list((made / "stills").glob("panorama_*.jpg"))) == 4 == len(list((made / "stills").glob("view_*.jpg")))
    assert Image.open(made / "contact_sheet.png").width == 1600
    request = json.loads((made / "generate.json").read_text())
    assert request["asked"]["prompt"] == "a box" and request["asked"]["image"] == str(photo)
    assert request["finished_frames"] == 5 and request["seconds_a_frame"] > 0
    view = Memory.load(made / "world.safetensors").query(capture.camera, capture[3].camera_to_world)
    assert view.visibility.mean() > 0.9 and (view.features - capture[3].image).abs().mean() < 0.1


def test_a_loop_ends_where_it_began_and_looks_the_same(made):
    capture = read_capture(made / "walk")
    torch.testing.assert_close(capture[0].camera_to_world, capture[4].camera_to_world, atol=1e-5, rtol=0)
    assert float(capture[0].camera_to_world[2, 3]) == pytest.approx(generate.EYES)


def test_a_world_is_gone_on_from(made, model_file, tmp_path):
    before = Memory.load(made / "world.safetensors")
    out = tmp_path / "on"
    world = ("--world", made / "world.safetensors", "--model", model_file, "--steps", 1)
    assert run(*world, "--trajectory", "explore", "--frames", 6, "--out", out) == 0
    capture = read_capture(out / "walk")
    torch.testing.assert_close(capture[0].camera_to_world[:3, 3], before.poses[-1, :3, 3], atol=1e-4, rtol=0)
    after = Memory.load(out / "world.safetensors")
    assert after.nbytes >= before.nbytes and torch.equal(after.poses[: len(before.poses)], before.poses)
    view = before.query(capture.camera, capture[0].camera_to_world)
    seen = view.visibility > 0.9
    assert seen.float().mean() > 0.8 and (view.features - capture[0].image)[seen].abs().mean() < 0.1
    assert Memory.load(made / "world.safetensors").nbytes == before.nbytes, "what was given is left as it was"


def test_words_alone_and_the_seed_decide(model_file, tmp_path):
    images = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        options = ("--prompt", "a hall", "--seed", seed, "--frames", 1, "--steps", 2, "--model", model_file)
        assert run(*options, "--trajectory", "forward", "--out", tmp_path / name) == 0
        images.append(read_capture(tmp_path / name / "walk")[0].image)
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_a_perspective_photo_along_a_path_file(photo, tmp_path):
    Image.open(photo).crop((16, 8, 40, 24)).save(tmp_path / "crop.jpg")
    keys = [{"position": [0, 0, 1]}, {"position": [0.4, 0, 1.2], "yaw": 30, "pitch": 10}]
    (tmp_path / "path.json").write_text(json.dumps({"keys": keys, "frames": 3}))
    options = ("--image", tmp_path / "crop.jpg", "--fov", 80, "--trajectory", tmp_path / "path.json")
    assert run(*options, "--model", "none", "--out", tmp_path / "out") == 0
    capture = read_capture(tmp_path / "out" / "walk")
    assert len(capture) == 3 and float(capture[2].camera_to_world[2, 3]) == pytest.approx(1.2, abs=1e-5)
    assert json.loads((tmp_path / "out" / "generate.json").read_text())["asked"]["frames"] == 3


class Stopping:
    """A network that fails at its nth segment."""

    def __init__(self, error, after):
        self.error, self.left = error, after

    def sample(self, condition, generator):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return condition.filled()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken")], ids=["ctrl-c", "failure"])
def test_a_run_that_is_stopped_leaves_every_finished_frame(photo, tmp_path, monkeypatch, error):
    world = World(Stopping(error, after=3), height=16)
    monkeypatch.setattr(generate, "load", lambda args: world)
    with pytest.raises(type(error)):
        run("--image", photo, "--frames", 9, "--out", tmp_path)
    capture = read_capture(tmp_path / "walk")
    assert len(capture) == 3 and capture.has_depth
    view = Memory.load(tmp_path / "world.safetensors").query(capture.camera, capture[2].camera_to_world)
    assert view.visibility.mean() > 0.9
    assert json.loads((tmp_path / "generate.json").read_text())["finished_frames"] == 3
    with av.open(str(tmp_path / "walk.mp4")) as container:
        assert len(list(container.decode(video=0))) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_frame_is_written_leaves_the_walk(photo, tmp_path, monkeypatch, number):
    stills, numbers = [], (signal.SIGINT, signal.SIGTERM)

    def still(path, *args, **options):
        stills.append(path)
        if len(stills) == 2:
            os.kill(os.getpid(), number)
        write_still(path, *args, **options)

    write_still = generated.write_still
    monkeypatch.setattr(generated, "write_still", still)
    # Background jobs ignore the one, and the other, unheld, would end the tests.
    handlers = [signal.signal(one, signal.default_int_handler) for one in numbers]
    try:
        with pytest.raises(KeyboardInterrupt):
            run("--image", photo, "--model", "none", "--frames", 9, "--out", tmp_path)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        for one, handler in zip(numbers, handlers, strict=True):
            signal.signal(one, handler)
    assert len(read_capture(tmp_path / "walk")) == 2 and len(Memory.load(tmp_path / "world.safetensors").poses) > 0
    assert json.loads((tmp_path / "generate.json").read_text())["finished_frames"] == 2
    with av.open(str(tmp_path / "walk.mp4")) as container:
        assert len(list(container.decode(video=0))) == 2


def test_a_frame_that_cannot_be_written_leaves_those_before(photo, tmp_path, monkeypatch):
    write_still = generated.write_still

    def still(path, *args, **options):
        if path.name == "0002.png":
            raise OSError("no space left")
        write_still(path, *args, **options)

    monkeypatch.setattr(generated, "write_still", still)
    with pytest.raises(OSError, match="no space left"):
        run("--image", photo, "--model", "none", "--frames", 5, "--out", tmp_path)
    assert len(read_capture(tmp_path / "walk")) == 2
    assert json.loads((tmp_path / "generate.json").read_text())["finished_frames"] == 2
    assert len(Memory.load(tmp_path / "world.safetensors").poses) > 0


def test_a_shorter_walk_leaves_nothing_of_a_longer_one(photo, tmp_path):
    for frames in (6, 2):
        options = ("--image", photo, "--model", "none", "--frames", frames, "--trajectory", "forward")
        assert run(*options, "--out", tmp_path) == 0
    for folder in ("rgb", "depth", "depth_preview"):
        assert sorted(file.name for file in (tmp_path / "walk" / folder).iterdir()) == ["0000.png", "0001.png"]
    assert len(list((tmp_path / "stills").iterdir())) == 4


def test_a_picture_of_what_a_world_remembers_is_refused(made, model_file, photo, tmp_path):
    with pytest.raises(ValueError, match="begin elsewhere, or leave"):
        run("--image", photo, "--world", made / "world.safetensors", "--model", model_file, "--out", tmp_path)
    assert not (tmp_path / "world.safetensors").exists()


def test_words_without_a_network_are_said_to_have_no_effect(tmp_path, capsys):
    assert run("--prompt", "a hall", "--model", "none", "--frames", 1, "--out", tmp_path) == 0
    assert "will be grey" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough memory: you tried")],
    ids=["cuda", "cpu"],
)
def test_a_device_that_is_full_is_said_with_advice(photo, tmp_path, monkeypatch, error):
    full = World(Stopping(error, after=0), height=16)
    monkeypatch.setattr(generate, "load", lambda args: full)
    with pytest.raises(OSError, match="out of memory on cpu: use a smaller model"):
        run("--image", photo, "--frames", 3, "--out", tmp_path)
    assert not (tmp_path / "walk" / "transforms.json").exists() and not (tmp_path / "walk.mp4").exists()


def test_the_world_is_written_while_it_is_made(photo, tmp_path, monkeypatch):
    """A run that is killed leaves no chance to write it at the end."""
    monkeypatch.setattr(generate, "SAVE_SECONDS", 0.0)
    saved = []
    save = World.save
    monkeypatch.setattr(World, "save", lambda self, path: (save(self, path), saved.append(Memory.load(path).nbytes)))
    assert run("--image", photo, "--model", "none", "--frames", 3, "--out", tmp_path) == 0
    assert len(saved) == 4 and min(saved) > 0
    saved.clear()
    monkeypatch.setattr(generate, "SAVE_SECONDS", 1e9)
    assert run("--image", photo, "--model", "none", "--frames", 3, "--out", tmp_path) == 0
    assert len(saved) == 2, "after the first frame, and at the end"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--prompt, --image or --world"),
        (("--prompt", "  "), "--prompt: expected words"),
        (("--prompt", "x" * 2001), "--prompt: expected at most 2000 characters, got 2001"),
        (("--prompt", "x", "--frames", 0), "--frames: expected 1 to"),
        (("--prompt", "x", "--frames", -3), "--frames"),
        (("--prompt", "x", "--steps", 0), "--steps"),
        (("--prompt", "x", "--seed", -1), "--seed"),
        (("--prompt", "x", "--fov", 90), "--fov: belongs to --image"),
        (("--prompt", "x", "--text-guidance", "nan"), "--text-guidance"),
        (("--prompt", "x", "--trajectory", "sideways"), "--trajectory: expected forward, loop, explore"),
        (("--prompt", "x", "--trajectory", "nowhere.json"), "nowhere.json"),
        (("--prompt", "x", "--fps", 0), "fps"),
        (("--image", ""), "--image: expected a file, got no name"),
        (("--world", ""), "--world: expected a file, got no name"),
        (("--prompt", "x", "--device", "tpu"), "--device: expected cpu or cuda, got 'tpu'"),
        (("--image", "nowhere.jpg"), "nowhere.jpg"),
        (("--world", "nowhere.safetensors"), "nowhere.safetensors"),
        (("--prompt", "x", "--model", "nowhere"), "nowhere"),
    ],
)
def test_bad_options_are_refused_before_anything_is_made(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    model = () if "--model" in options else ("--model", "none")
    with pytest.raises((ValueError, OSError)) as raised:
        run(*options, *model, "--out", tmp_path / "out")
    assert message in str(raised.value) or message in str(getattr(raised.value, "filename", ""))
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"keys": [{"position": [0, 0, 1]}, {"position": [50, 0, 1]}]}, "jumps by 12.5 m at frame"),
        ({"keys": [{"position": [0, 0, float("nan")]}]}, "finite"),
        ({"keys": [{"position": [0, 0, 1]}], "frames": 0}, "frames"),
        ({"keys": []}, "keys"),
    ],
)
def test_bad_paths_are_refused(tmp_path, content, message):
    path = tmp_path / "path.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as raised:
        run("--prompt", "x", "--model", "none", "--frames", 5, "--trajectory", path, "--out", tmp_path / "out")
    assert "path.json" in str(raised.value)


def test_bad_worlds_and_models_are_refused(made, model_file, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((made / "world.safetensors").read_bytes()[:-50])
    (tmp_path / "text.safetensors").write_text("neither")
    for name in ("cut.safetensors", "text.safetensors"):
        with pytest.raises(ValueError, match=name):
            run("--world", tmp_path / name, "--model", "none", "--out", tmp_path / "out")
    for file in (tmp_path / "text.safetensors", made / "world.safetensors"):
        with pytest.raises(ValueError, match=file.name):
            run("--prompt", "x", "--model", file, "--out", tmp_path / "out")
    with pytest.raises(ValueError, match=model_file.name):
        run("--world", model_file, "--model", "none", "--out", tmp_path / "out")
    far = tmp_path / "far.json"
    far.write_text(json.dumps({"keys": [{"position": [40, 0, 1]}], "frames": 2}))
    with pytest.raises(ValueError, match="begins .* m from the nearest place"):
        run("--world", made / "world.safetensors", "--model", "none", "--trajectory", far, "--out", tmp_path / "out")
    Memory(0.1).save(tmp_path / "empty.safetensors")
    with pytest.raises(ValueError, match="empty"):
        run("--world", tmp_path / "empty.safetensors", "--model", "none", "--out", tmp_path / "out")


def test_a_capture_is_not_overwritten(photo, tmp_path):
    (tmp_path / "walk").mkdir()
    (tmp_path / "walk" / "transforms.json").write_text("{}")
    with pytest.raises(ValueError, match="not a rendering"):
        run("--image", photo, "--model", "none", "--out", tmp_path)


def test_the_route_follows_what_the_frames_show(monkeypatch, tmp_path):
    """In the box, whose depth is known: the walk forward ends before the wall."""
    camera = Panorama(32, 64)

    class Seeing(World):
        def walk(self, path):
            for frame, pose in zip(super().walk(path), path, strict=True):
                truth = box_frame(pose, camera)
                yield frame._replace(image=truth.image, depth=truth.depth)

    start = level_pose(torch.tensor([-0.9, 0.0, 0.0]), torch.tensor(0.0))
    frames = list(generate.walk(Seeing(height=32), "forward", None, start, 24))
    places = torch.stack([frame.camera_to_world[:2, 3] for frame in frames])
    assert len(frames) == 24 and (HALF_SIZE[:2] - places.abs()).min() > 0.3
    assert places[:, 0].max() > 0.3
