"""Whole runs: three stages, killed and resumed, refused, guarded, out of memory."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_training import Quiet, small_config, small_model

from evoworld.training import CheckpointError
from evoworld.training.checkpoint import last_checkpoint
from evoworld.training.clock import StageClock
from evoworld.training.config import CONFIGS, STAGES, AutoencoderStageConfig, FlowStageConfig, StageConfig
from evoworld.training.run_folder import MODEL, RunFolder
from evoworld.training.trainer import train
from evoworld.world.dit import DiTConfig
from evoworld.world.model import WorldModel

STEPS = 5  # of the flow
NARROW = DiTConfig(dim=32, num_heads=2, depth=1, stem_dim=8, rotary_width=8, feature_dim=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def config(folder):
    return replace(small_config(folder), flow=FlowStageConfig(steps=STEPS, batch=2, warmup=1, drop_text=0.0))


@pytest.fixture(scope="module")
def finished(config):
    """The run from beginning to end, in one go."""
    watcher = Quiet()
    assert train(replace(config, tensorboard=True), watcher)
    return watcher


def tensors_of(folder):
    return load_file(Path(folder) / MODEL)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_trains_its_stages_and_leaves_a_model(config, finished):
    assert [(stage, step) for stage, step, _ in finished.losses] == [
        *(("autoencoder", i) for i in (1, 2)),
        *(("memory", i) for i in (1, 2)),
        *(("flow", i) for i in range(1, STEPS + 1)),
    ]
    assert all(loss == loss and loss > 0 for *_, loss in finished.losses)
    model = WorldModel.load(Path(config.out) / MODEL)
    assert model.config == config.model and model.config.uses_memory
    fresh = WorldModel(config.model)
    torch.manual_seed(config.seed)
    for name in ("autoencoder", "memory_encoder", "dit"):
        trained, new = getattr(model, name).state_dict(), getattr(fresh, name).state_dict()
        assert any(not torch.equal(trained[key], new[key]) for key in new), name
    assert model.dit.last.weight.abs().max() > 0  # starts at zero
    lines = [json.loads(line) for line in (Path(config.out) / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines if line.get("over")] == ["autoencoder", "memory", "flow"]
    assert list((Path(config.out) / "tensorboard").iterdir())


def test_a_run_is_the_same_every_time_and_resuming_a_finished_one_does_nothing(config, finished):
    watcher = Quiet()
    assert train(replace(config, resume=True), watcher)
    assert watcher.losses == []
    again = replace(config, out=f"{config.out}-again", resume=True)
    assert not train(replace(again, stop_after=1e-6), Quiet())  # before the first step
    assert train(again, Quiet())
    assert same(tensors_of(config.out), tensors_of(f"{config.out}-again"))


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from dataclasses import replace
from pathlib import Path
from small_training import Quiet, small_config
from evoworld.training.config import FlowStageConfig
from evoworld.training.trainer import train
flow = FlowStageConfig(steps=int(sys.argv[4]), batch=2, warmup=1, drop_text=0.0)
config = replace(small_config(Path(sys.argv[2])), flow=flow, out=sys.argv[3], save_minutes=0.0, resume=True)
train(config, Quiet())
"""


@pytest.mark.parametrize("wanted", [1, 7])  # in the first stage, and in the last
def test_a_killed_run_goes_on_to_the_very_same_weights(config, finished, folder, wanted):
    out = folder / f"killed-{wanted}"
    arguments = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(folder), str(out), str(STEPS)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(arguments, env=environment)
    try:
        while (path := last_checkpoint_quietly(out)) is None or int(path.name[-8:]) < wanted:
            assert process.poll() is None and time.monotonic() < deadline(), "the run ended by itself"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    state = RunFolder(replace(config, out=str(out))).read()
    watcher = Quiet()
    assert train(replace(config, out=str(out), resume=True), watcher)
    assert (state.stage, state.step + 1) == watcher.losses[0][:2]
    assert same(tensors_of(out), tensors_of(config.out))


def last_checkpoint_quietly(folder):
    """The last checkpoint, without tidying up behind the process that writes."""
    found = sorted(folder.glob("checkpoint-*/checkpoint.json"))
    return found[-1].parent if found else None


def deadline(limit=[]):  # noqa: B006 (one for the whole file)
    limit.append(time.monotonic() + 300)
    return limit[0]


def test_minutes_end_stages_and_stop_after_ends_the_process(config, folder, monkeypatch):
    """Time that passes by the steps taken, half a second each: what a machine does meanwhile makes no difference."""
    watcher, looks = Quiet(), itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: 0.5 * len(watcher.losses) + 1e-6 * next(looks))
    monkeypatch.setattr(StageClock, "elapsed", lambda clock: 0.5 * clock.step)
    timed = replace(config, minutes=0.1, memory=StageConfig(share=0.0), out=str(folder / "timed"))
    assert not train(replace(timed, stop_after=1 / 60), watcher)
    assert [stage for stage, *_ in watcher.losses] == ["autoencoder"] * 2
    assert any("--resume" in note for note in watcher.notes)
    assert train(replace(timed, resume=True), watcher)
    shares = config.autoencoder.share, config.flow.share
    taken = [stage for stage, *_ in watcher.losses]
    expected = 12 * shares[0] / sum(shares)
    assert abs(taken.count("autoencoder") - expected) <= 1 and taken.count("flow") == pytest.approx(
        12 - expected, abs=1
    )


def test_ctrl_c_writes_a_checkpoint_first(config, folder):
    class Impatient(Quiet):
        def progress(self, progress):
            super().progress(progress)
            if len(self.losses) == 3:
                os.kill(os.getpid(), signal.SIGINT)

    stopped = replace(config, out=str(folder / "stopped"))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            train(stopped, Impatient())
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert RunFolder(stopped).read().total == 3


def test_a_run_is_not_overwritten_nor_gone_on_with_otherwise(config, finished):
    with pytest.raises(ValueError, match="--resume"):
        train(config, Quiet())
    with pytest.raises(ValueError, match=r"flow\.batch = 2, got 4"):
        train(replace(config, resume=True, flow=replace(config.flow, batch=4)), Quiet())
    with pytest.raises(ValueError, match=r"model\.num_frames = 2, got 3"):
        other = replace(config.model, num_frames=3)
        train(replace(config, resume=True, model=other), Quiet())


def test_a_damaged_checkpoint_is_named(config, folder):
    broken = replace(config, out=str(folder / "broken"), stop_after=1e-6, save_minutes=0.0)
    assert not train(broken, Quiet())
    shard = next(last_checkpoint(Path(broken.out)).glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"broken.*damaged"):
        train(replace(broken, resume=True), Quiet())


def test_a_model_that_was_trained_without_memory_says_so(config, folder):
    data = replace(config.data, no_memory=1.0)
    only = replace(config, out=str(folder / "alone"), data=data, autoencoder=AutoencoderStageConfig(steps=0))
    only = replace(only, memory=StageConfig(steps=0), flow=replace(config.flow, steps=1))
    assert train(only, Quiet())
    assert not WorldModel.load(Path(only.out) / MODEL).config.uses_memory


def test_training_starts_from_weights(config, finished, folder):
    """Of a model without the part that is new; the first step is small, so that what was learnt is still there."""
    model = replace(config.model, dit=replace(config.model.dit, head_dim=8))
    flow = replace(config.flow, steps=1, rate=1e-9, ema=0.0)
    weights = str(Path(config.out) / MODEL)
    more = replace(config, out=str(folder / "more"), model=model, weights=weights, flow=flow)
    more = replace(more, autoencoder=AutoencoderStageConfig(steps=0), memory=StageConfig(steps=0))
    watcher = Quiet()
    assert train(more, watcher) and [stage for stage, *_ in watcher.losses] == ["flow"]
    assert list((Path(more.out) / "features").rglob("*.safetensors"))  # the learned memory is shown, too
    before, after = tensors_of(config.out), tensors_of(more.out)
    assert {name.split(".")[1] for name in after.keys() - before.keys()} == {"head"}
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in before)
    other = replace(more, out=str(folder / "other"), model=small_model(memory=None, dit=NARROW))
    with pytest.raises(ValueError, match=r"model\.safetensors: expected the weights of the configuration"):
        train(other, Quiet())
    with pytest.raises(FileNotFoundError, match="nowhere: expected a file of weights"):
        train(replace(other, weights="nowhere"), Quiet())


def test_a_step_whose_gradient_is_not_finite_is_left_out(config, folder, monkeypatch):
    from evoworld.training import trainer

    norms = iter([torch.tensor(1.0), torch.tensor(float("nan"))])
    monkeypatch.setattr(trainer, "gradient_norm", lambda module: next(norms))
    only = replace(config, out=str(folder / "guarded"), memory=StageConfig(steps=0), flow=FlowStageConfig(steps=0))
    watcher = Quiet()
    assert train(only, watcher)
    assert any("Step 1 of autoencoder skipped" in note for note in watcher.notes)
    assert RunFolder(only).read().skipped == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_change(config, folder, monkeypatch, error):
    from evoworld.training import stages

    def fail(*_):
        raise error

    monkeypatch.setattr(stages.AutoencoderObjective, "losses", fail)
    with pytest.raises(MemoryError, match=r"--autoencoder\.accumulate 2 .*--autoencoder\.batch 1"):
        train(replace(config, out=str(folder / "large")), Quiet())


@pytest.mark.parametrize("name", ["base", "large"])
def test_base_and_large_take_a_step_at_reduced_size(name, folder):
    config, model = CONFIGS[name], CONFIGS[name].model
    reduced = replace(
        model,
        height=32,
        num_frames=2,
        text="none",
        autoencoder=replace(model.autoencoder, dim=8, refiner_dim=8),
        dit=replace(model.dit, dim=32, num_heads=2, depth=2, stem_dim=8, rotary_width=8),
        memory=replace(model.memory, height=32, frame_dim=8, voxel_dim=8, brick_dim=8),
    )
    assert 2 * model.height == {"base": 512, "large": 1024}[name]
    small = small_config(folder, model=reduced, out=str(folder / name), checkpointing=config.checkpointing)
    watcher = Quiet()
    assert train(
        replace(small, **{stage: replace(getattr(config, stage), steps=1, batch=2) for stage in STAGES}), watcher
    )
    assert [stage for stage, *_ in watcher.losses] == list(STAGES)


def test_previews_show_what_is_made(config, folder):
    flow = FlowStageConfig(steps=1, consistency=0.1)
    watched = replace(config, out=str(folder / "watched"), preview_minutes=60.0, flow=flow)
    assert train(watched, Quiet())
    names = sorted(path.name for path in (folder / "watched" / "previews").iterdir())
    assert names == ["autoencoder-0000002.png", "flow-0000001.png", "memory-0000002.png"]
    lines = [json.loads(line) for line in (folder / "watched" / "log.jsonl").read_text().splitlines()]
    held_out = [line for line in lines if line.get("held_out_loss", 0) > 0]
    assert [line["stage"] for line in held_out] == ["autoencoder", "memory", "flow"]
    assert held_out[2]["held_out_consistency"] > 0


def test_a_run_can_be_made_longer(config, folder):
    short = replace(config, out=str(folder / "longer"), memory=StageConfig(steps=0), flow=FlowStageConfig(steps=0))
    assert train(replace(short, stop_after=1e-6), Quiet()) is False
    watcher = Quiet()
    assert train(replace(short, resume=True, autoencoder=replace(short.autoencoder, steps=3)), watcher)
    assert len(watcher.losses) == 3


def test_pixels_need_no_autoencoder_but_a_refiner(config, folder):
    tiny = config.model
    pixels = replace(tiny.autoencoder, kind="none", latent_channels=64)
    model = small_model(autoencoder=pixels, dit=replace(tiny.dit, latent_channels=64))
    run = replace(config, model=model, out=str(folder / "pixels"), flow=FlowStageConfig(steps=1))
    assert train(run, Quiet())
    trained = WorldModel.load(Path(run.out) / MODEL)
    assert trained.autoencoder.refiner.layers[-1].weight.abs().max() > 0  # starts at zero


def test_a_model_without_a_learned_memory_has_no_such_stage(config, folder):
    model = small_model(memory=None, dit=replace(config.model.dit, feature_dim=0))
    without = replace(config, model=model, out=str(folder / "without"))
    with pytest.raises(ValueError, match=r"--memory\.steps 0"):
        train(replace(without, autoencoder=replace(config.autoencoder, steps=0)), Quiet())
