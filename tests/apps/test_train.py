"""The command that trains: its settings, what it prints, and its messages."""

import pytest
from box_world import error_of

from evoworld.apps.train import parse
from evoworld.cli import main
from evoworld.training import CONFIGS
from evoworld.training.costs import count_costs
from evoworld.world.model import WorldModel

SMALL = """
base: tiny
data: {worlds: 1, frames: 2, segments: 2, observed: 1, no_memory: 1.0}
model:
  height: 16
  num_frames: 2
  text: none
  autoencoder: {dim: 8, refiner_dim: 8}
  dit: {dim: 32, num_heads: 2, depth: 2, stem_dim: 8, rotary_width: 8, feature_dim: 0}
  memory: null
autoencoder: {steps: 1, rate: 1e-3}
memory: {steps: 0}
flow: {steps: 2}
preview_minutes: 0
"""


@pytest.fixture
def small(tmp_path):
    """A file of settings for a run of seconds."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def test_the_command_line_changes_what_a_name_or_a_file_says(small):
    assert parse([]) == CONFIGS["tiny"]
    config = parse(
        ["--config", str(small), "--flow.batch", "3", "--model.dit.depth", "4", "--resume", "--minutes", "1.5"]
    )
    assert (config.flow.batch, config.model.dit.depth, config.resume, config.minutes) == (3, 4, True, 1.5)
    assert config.autoencoder.rate == 1e-3 and config.model.memory is None and config.flow.steps == 2
    assert parse(["--config=large", "--max-shard-mb", "15"]).max_shard_mb == 15
    assert parse(["--config", "large", "--sharding", "ddp"]).sharding == "ddp"


@pytest.mark.parametrize(
    ("name", "millions", "memory"), [("tiny", (5, 9), 0.5), ("base", (100, 400), 20), ("large", (500, 2000), 80)]
)
def test_costs_are_counted_without_the_memory_they_take(name, millions, memory):
    costs = count_costs(CONFIGS[name].model, checkpointing=True)
    total = sum(costs.parameters.values())
    assert millions[0] * 1e6 < total < millions[1] * 1e6
    assert costs.state_bytes > 4 * 4 * costs.parameters["dit"]
    assert 0 < costs.flow.activation_bytes < memory * 1e9
    table = dict(costs.table({"flow": 2}))
    assert f"{2 * costs.flow.flops / 1e12:.3f} TFLOPs" in table["flow: 2 segments"]


def test_counted_parameters_are_those_there_are():
    costs = count_costs(CONFIGS["tiny"].model)
    assert sum(costs.parameters.values()) == sum(p.numel() for p in WorldModel(CONFIGS["tiny"].model).parameters())
    dense = sum(p.numel() for p in WorldModel(CONFIGS["tiny"].model).dit.blocks.parameters() if p.ndim == 2)
    tokens = CONFIGS["tiny"].model.num_frames * 8 * 16
    assert 1.5 * dense * tokens < costs.flow.forward_flops < 8 * dense * tokens
    cheaper = count_costs(CONFIGS["tiny"].model, checkpointing=True)
    assert cheaper.flow.activation_bytes < 0.5 * costs.flow.activation_bytes


def test_the_command_trains_and_resumes(small, tmp_path, capsys):
    arguments = [
        "train",
        "--config",
        str(small),
        "--out",
        str(tmp_path / "run"),
        "--data.folder",
        str(tmp_path / "data"),
    ]
    assert main([*arguments, "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert all(word in captured.out for word in ("Model: ", "M parameters", "TFLOPs", "GB", "stage flow"))
    assert "Stage autoencoder: 1 steps" in captured.err and "Stage flow is over after 2 steps" in captured.err
    assert WorldModel.load(tmp_path / "run" / "model.safetensors").config.height == 16
    code, err = error_of(capsys, *arguments)
    assert code == 2 and "--resume" in err
    assert main([*arguments, "--resume"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "huge"], "expected tiny, base, large or a file that ends in .yaml, got 'huge'"),
        (["--config", "missing.yaml"], "missing.yaml: No such file"),
        (["--minutes", "nan"], "minutes: expected at least 0"),
        (["--flow.batch", "0"], "batch: expected at least 1, got 0"),
        (["--data.holes", "2"], "holes: expected 0 to 1"),
        (["--data.worlds", "0"], "expected worlds or captures"),
        (["--device", "abacus"], "expected a name such as cpu"),
        (["--autoencoder.steps", "0", "--memory.steps", "0", "--flow.steps", "0"], "expected a stage to train"),
    ],
)
def test_bad_settings_are_refused(arguments, message, tmp_path, capsys):
    try:
        code = main(["train", *arguments, "--out", str(tmp_path / "run")])
    except SystemExit as stop:  # tyro's
        code = stop.code
    assert code in (1, 2) and message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("flow: {stepps: 3}", r"flow.stepps: no such setting; expected one of steps"),
        ("flow: {batch: many}", "flow.batch: expected int, got 'many'"),
        ("sharding: both", "sharding: expected one of 'ddp', 'fsdp', got 'both'"),
        ("base: small", "base: expected one of tiny"),
        ("[1, 2]", "expected settings by name"),
        ("flow: {batch: 3", "expected"),
        ("model: {height: 63}", "height"),
    ],
)
def test_files_of_settings_that_are_none_are_refused(content, message, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    code, err = error_of(capsys, "train", "--config", path)
    assert code == 2 and message in err and "mine.yaml" in err


def test_unknown_options_and_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--stepps", "3"])
    assert stop.value.code == 2
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "--max-shard-mb" in out and "--flow.batch" in out and "--config" in out
    assert "--model.memory.reach" in out
