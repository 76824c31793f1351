"""Checkpoints: whole or not there, in files of a given size, and told apart from anything else."""

import json

import pytest
import torch

from evoworld.training import CheckpointError
from evoworld.training.checkpoint import FACTS, last_checkpoint, load_checkpoint, save_checkpoint


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "weights.a": torch.randn(300, 400, generator=generator),
        "weights.b": torch.randn(7, generator=generator).to(torch.bfloat16),
        "optimizer.step.a": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "numbers": torch.arange(5),
    }


def test_what_is_saved_comes_back_in_files_of_the_size_asked_for(tmp_path):
    path = save_checkpoint(tmp_path, 4, tensors(), {"stage": "flow", "norms": [0.1, 2.0]}, max_shard_mb=0.1)
    sizes = [file.stat().st_size for file in path.glob("*.safetensors")]
    assert len(sizes) == 5 and max(sizes) <= 100_000
    loaded, facts = load_checkpoint(path)
    assert facts == {"stage": "flow", "norms": [0.1, 2.0]}
    assert loaded.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)


def test_the_newest_is_kept_and_a_failed_write_leaves_it(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, tensors(), {"step": 1}, 1)
    save_checkpoint(tmp_path, 12, tensors(), {"step": 12}, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000012"]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, 13, tensors(), {"step": 13}, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000012"]
    assert load_checkpoint(last_checkpoint(tmp_path))[1] == {"step": 12}


def test_what_a_killed_process_left_is_not_taken_for_a_checkpoint(tmp_path):
    save_checkpoint(tmp_path, 3, tensors(), {}, 1)
    (tmp_path / ".checkpoint-00000009-ab").mkdir()
    (tmp_path / "checkpoint-00000010").mkdir()  # as after a removal that was not finished
    assert last_checkpoint(tmp_path).name == "checkpoint-00000003"
    assert not (tmp_path / ".checkpoint-00000009-ab").exists()
    assert last_checkpoint(tmp_path / "nothing") is None


def damage(path, how):
    shard, facts = path / "00000.safetensors", path / FACTS
    content = json.loads(facts.read_text())
    if how == "truncated":
        shard.write_bytes(shard.read_bytes()[:1000])
    elif how == "not safetensors":
        shard.write_bytes(b"{}" * 100)
    elif how == "missing":
        shard.unlink()
    elif how == "not JSON":
        facts.write_text("{")
    else:
        changes = {
            "other": {"format": "theirs"},
            "later": {"version": 99},
            "more": {"tensors": {"x": ["float32", [1]]}},
        }
        content |= changes[how]
        facts.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "damaged"),
        ("not safetensors", "damaged"),
        ("missing", "00000.safetensors.*missing"),
        ("not JSON", "damaged"),
        ("other", "expected a checkpoint"),
        ("later", "later version"),
        ("more", "x is missing"),
    ],
)
def test_damaged_and_other_checkpoints_are_refused(tmp_path, how, message):
    path = save_checkpoint(tmp_path, 1, tensors(), {}, 1)
    damage(path, how)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)
