"""World files: what is saved comes back, and what is wrong with a file is said."""

import json
import os
import random
import stat
import sys

import pytest
import torch
from box_world import CAMERA, box_frame, box_walk
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import evoworld
from evoworld.world import Memory, WorldError
from evoworld.world.first_write import first_write_config, observe_first


def observed(num_frames=3, **options):
    """A memory of the box, with a window in its ceiling."""
    memory = Memory(**{"voxel_size": 0.1, **options})
    for pose in box_walk(num_frames):
        observe(memory, pose)
    return memory


def observe(memory, pose):
    frame = box_frame(pose)
    features = frame.image.repeat(1, 1, memory.config.feature_dim)[..., : memory.config.feature_dim]
    frame.depth[:4] = 0.0
    memory.observe(features, frame.depth, frame.camera_to_world, frame.camera)


def assert_same(one, other):
    for level, twin in zip(one.levels, other.levels, strict=True):
        assert (level.reach, level.dense_reach, level.footprints) == (twin.reach, twin.dense_reach, twin.footprints)
        for name, tensor in level.tensors().items():
            assert torch.equal(tensor, twin.tensors()[name]), name
    assert torch.equal(one.background.sums, other.background.sums) and torch.equal(one.poses, other.poses)
    assert one.config == other.config and one.num_voxels == other.num_voxels and one.nbytes == other.nbytes
    pose = box_walk(7)[3]
    for part, twin in zip(one.query(CAMERA, pose), other.query(CAMERA, pose), strict=True):
        assert torch.equal(part, twin)


@pytest.fixture(scope="module")
def memory():
    return observed()


@pytest.fixture
def world(memory, tmp_path):
    memory.save(tmp_path / "world.safetensors")
    return tmp_path / "world.safetensors"


def rewrite(path, change_tensors=None, change_metadata=None):
    """The file again, with something changed."""
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    for change, what in ((change_tensors, tensors), (change_metadata, metadata)):
        if change is not None:
            change(what)
    save_file(tensors, path, metadata)


def test_the_world_comes_back_bit_for_bit(memory, world):
    assert_same(memory, Memory.load(world))


def test_an_empty_memory_comes_back(tmp_path):
    Memory(0.2, feature_dim=5).save(tmp_path / "w.safetensors")
    loaded = Memory.load(tmp_path / "w.safetensors")
    assert loaded.num_voxels == 0 and loaded.poses.shape == (0, 4, 4) and loaded.config == Memory(0.2, 5).config
    view = loaded.query(CAMERA, torch.eye(4))
    assert view.features.shape == (32, 64, 5) and not view.visibility.any()


def test_observing_goes_on_after_loading_as_without(tmp_path):
    """16 channels, and growth before and after: a second save and load too."""
    memory = observed(2, feature_dim=16)
    memory.save(tmp_path / "w.safetensors")
    loaded = Memory.load(tmp_path / "w.safetensors")
    for pose in box_walk(5)[2:]:
        observe(memory, pose)
        observe(loaded, pose)
    assert_same(memory, loaded)
    loaded.save(tmp_path / "w.safetensors")
    assert_same(memory, Memory.load(tmp_path / "w.safetensors"))


def test_points_come_back(tmp_path):
    memory, (first, second) = Memory(config=first_write_config(0.1)), box_walk(5)[:2]
    frame = box_frame(first)
    observe_first(memory, frame.image, frame.depth, first, CAMERA)
    memory.save(tmp_path / "w.safetensors")
    loaded = Memory.load(tmp_path / "w.safetensors")
    assert torch.equal(loaded.surfels.rows, memory.surfels.rows) and not loaded.surfels.empty
    assert_same(memory, loaded)
    frame = box_frame(second)
    for one in (memory, loaded):
        observe_first(one, frame.image, frame.depth, second, CAMERA)
    assert_same(memory, loaded)
    assert loaded.viewpoints.places.shape[0] == memory.viewpoints.places.shape[0] > 0
    memory.save(tmp_path / "w.safetensors")
    rewrite(tmp_path / "w.safetensors", lambda tensors: tensors.update({"viewpoints": torch.zeros(9, 3)}))
    assert_refused(tmp_path / "w.safetensors", "viewpoints: expected as many places as ranges, got 9")
    memory.save(tmp_path / "w.safetensors")
    rewrite(tmp_path / "w.safetensors", lambda tensors: tensors["surfels"][0].zero_())
    assert_refused(tmp_path / "w.safetensors", "surfels: expected sizes above 0")


def test_a_file_of_version_1_is_read(memory, world):
    def change(header):
        config = json.loads(header["config"])
        del config["surfels"], config["near"]
        header |= {"version": "1", "config": json.dumps(config)}

    rewrite(world, change_metadata=change)
    assert_same(memory, Memory.load(world))


def test_a_loaded_memory_does_not_hang_on_the_file(memory, world):
    loaded = Memory.load(world)
    with open(world, "r+b") as file:
        file.write(b"\xff" * os.path.getsize(world))
    assert_same(memory, loaded)


def test_the_header_says_what_the_file_is(memory, world):
    with safe_open(world, "pt") as file:
        metadata, names = file.metadata(), set(file.keys())
    assert metadata["format"] == "evoworld-world" and metadata["version"] == "2"
    assert metadata["evoworld"] == evoworld.__version__
    config = json.loads(metadata["config"], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert config.keys() == vars(memory.config).keys()
    assert config["voxel_size"] == 0.1 and config["feature_dim"] == 3 and config["scales"] == list(memory.config.scales)
    assert json.loads(metadata["reach"]) == [level.reach for level in memory.levels]
    assert json.loads(metadata["dense_reach"]) == [level.dense_reach for level in memory.levels]
    assert {"background.sums", "poses", "level0.brick_coordinates", "level1.sums", "level2.distance_weight"} <= names
    assert os.path.getsize(world) < memory.nbytes + memory.background.sums.nbytes + memory.poses.nbytes + 4096


def test_the_words_come_back(tmp_path):
    memory = observed(1)
    memory.prompt = "a “red” box"
    memory.save(tmp_path / "w.safetensors")
    assert Memory.load(tmp_path / "w.safetensors").prompt == memory.prompt


def test_a_file_without_words_is_read(memory, world):
    rewrite(world, change_metadata=lambda metadata: metadata.pop("prompt"))
    assert Memory.load(world).prompt == ""


def test_the_file_has_the_permissions_of_any_other(memory, tmp_path):
    (tmp_path / "plain").touch()
    memory.save(tmp_path / "w.safetensors")
    assert stat.S_IMODE((tmp_path / "w.safetensors").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "plain").stat().st_mode
    )


def test_missing_folders_are_made(memory, tmp_path):
    memory.save(str(tmp_path / "a" / "b" / "w.safetensors"))
    assert_same(memory, Memory.load(str(tmp_path / "a" / "b" / "w.safetensors")))


# Not a world


def assert_refused(path, *words):
    with pytest.raises(WorldError) as error:
        Memory.load(path)
    text = str(error.value)
    assert "\n" not in text and str(path) in text, text
    for word in words:
        assert word in text, text


def test_a_missing_file_or_a_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors"):
        Memory.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(IsADirectoryError) as error:
        Memory.load(tmp_path)
    assert error.value.filename == str(tmp_path)


@pytest.mark.parametrize("share", [0.0, 1e-5, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(world, share):
    os.truncate(world, int(os.path.getsize(world) * share))
    assert_refused(world, "whole safetensors file")


def test_files_of_other_kinds_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(random.Random(0).randbytes(4096))
    assert_refused(path, "whole safetensors file")
    path.write_text("This is not a world. " * 100)
    assert_refused(path, "whole safetensors file")
    save_file({"poses": torch.zeros(1, 4, 4)}, path)
    assert_refused(path, "expected a world of evoworld")
    save_file({"poses": torch.zeros(1, 4, 4)}, path, {"format": "pt"})
    assert_refused(path, "expected a world of evoworld")


@pytest.mark.parametrize(
    "metadata, words",
    [
        ({"version": "3"}, "written by a later version"),
        ({"version": "1.5"}, "version: expected a whole number"),
        ({"config": "{"}, "config: expected JSON"),
        ({"config": "[]"}, "config: expected JSON"),
        ({"config": "{}"}, "config: expected voxel_size"),
        ({"reach": "[1.0]"}, "reach: expected 3 distances"),
        ({"dense_reach": '[1.0, "inf", 1.0]'}, "dense_reach: expected 3 distances"),
        ({"reach": "[1.0, -1.0, 1.0]"}, "reach: expected 3 distances"),
        ({"reach": "[1.0, NaN, 1.0]"}, "reach: expected 3 distances"),
    ],
)
def test_a_header_that_does_not_make_sense_is_refused(world, metadata, words):
    rewrite(world, change_metadata=lambda header: header.update(metadata))
    assert_refused(world, words)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"voxel_size": 0.0}, "voxel_size: expected a positive number"),
        ({"voxel_size": "inf"}, "voxel_size: expected a positive number"),
        ({"voxel_size": "0.1"}, "voxel_size: expected"),
        ({"voxel_size": True}, "voxel_size: expected"),
        ({"feature_dim": 0}, "feature_dim: expected at least 1"),
        ({"feature_dim": 3.0}, "feature_dim: expected"),
        ({"feature_dim": 4}, "sums: expected torch.float32"),
        ({"scales": [4.0, 1.0]}, "config: "),
        ({"scales": [4.0, 2.0, 1.0]}, "scales: expected"),
        ({"scales": []}, "scales: expected"),
        ({"scales": [0.0, 1.0, 0.5]}, "config: "),
        ({"scales": 4.0}, "scales: expected"),
        ({"footprints": [[0.0], [0.0, 1.0], [0.0, 1.0]]}, "footprints: expected"),
        ({"surfels": 1}, "surfels: expected"),
        ({"surfels": True}, "miss or add: surfels"),
        ({"spare": 1}, "config: expected voxel_size"),
    ],
)
def test_a_configuration_that_does_not_make_sense_is_refused(world, values, words):
    def change(header):
        header["config"] = json.dumps(json.loads(header["config"]) | values)

    rewrite(world, change_metadata=change)
    assert_refused(world, words)


def put(name, index, value):
    def change(tensors):
        tensors[name][index] = value

    return change


def replace(name, function):
    def change(tensors):
        tensors[name] = function(tensors[name])

    return change


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda tensors: tensors.pop("level1.sums"), ("level1.sums", "miss")),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), ("extra",)),
        (replace("level1.sums", lambda t: t[:, :-1].contiguous()), ("level1.sums", "[*, 4]")),
        (replace("level1.weight", lambda t: t.double()), ("level1.weight", "torch.float64")),
        (replace("level1.weight", lambda t: t[:, None]), ("level1.weight", "[*]")),
        (replace("level1.weight", lambda t: t[:-64]), ("level1.weight", "rows")),
        (replace("level0.brick_coordinates", lambda t: t[:-1]), ("level0.sums", "rows")),
        (replace("level0.brick_coordinates", lambda t: t.long()), ("brick_coordinates", "torch.int64")),
        (put("level0.brick_coordinates", 0, 1 << 29), ("bricks", "2^28")),
        (put("level0.brick_coordinates", 0, (1 << 28) - 1), ("pages",)),
        (lambda t: put("level0.brick_coordinates", 0, t["level0.brick_coordinates"][1])(t), ("each brick once",)),
        (put("level1.sums", (5, 0), float("nan")), ("level1.sums", "finite")),
        (put("level2.distance_sum", 5, float("inf")), ("level2.distance_sum", "finite")),
        (put("level1.sums", (5, -1), -1.0), ("level1.sums", "0 or more")),
        (put("level1.distance_weight", 5, -1.0), ("level1.distance_weight", "0 or more")),
        (put("poses", (0, 0, 0), float("nan")), ("poses", "finite")),
        (put("poses", (1, slice(3), slice(3)), 2.0), ("poses[1]", "not rigid")),
        (replace("background.sums", lambda t: t[:-1].contiguous()), ("background.sums", "twice as many columns")),
    ],
)
def test_tensors_that_do_not_fit_are_refused(world, change, words):
    rewrite(world, change_tensors=change)
    assert_refused(world, *words)


def test_without_safetensors_the_message_says_what_to_install(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'evoworld\[app\]'"):
        Memory.load(world)
