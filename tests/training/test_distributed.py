"""Two processes train what one would: whole copies of the weights, and weights split between them."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_training import Quiet, small_config

from evoworld.training.config import AutoencoderStageConfig, FlowStageConfig, StageConfig
from evoworld.training.distributed import Processes
from evoworld.training.run_folder import MODEL, RunFolder
from evoworld.training.trainer import train

STEPS = 3
PROGRAM = """
import os, shutil, signal, sys
sys.path.insert(0, sys.argv[1])
from dataclasses import replace
from pathlib import Path
import torch.distributed as dist
from small_training import Quiet
from test_distributed import flow_only
from evoworld.training.trainer import train

class Stopping(Quiet):
    def progress(self, progress):
        if progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

dist.init_process_group("gloo")  # once for all runs
config = flow_only(Path(sys.argv[2]))
assert train(replace(config, out=sys.argv[2] + "/ddp"), Quiet())
assert train(replace(config, out=sys.argv[2] + "/fsdp", sharding="fsdp", checkpointing=True), Quiet())
assert not train(replace(config, out=sys.argv[2] + "/stopped", sharding="fsdp"), Stopping())
if dist.get_rank() == 0:
    shutil.copytree(sys.argv[2] + "/stopped", sys.argv[2] + "/split")
dist.barrier()
assert train(replace(config, out=sys.argv[2] + "/split", sharding="fsdp", resume=True), Quiet())
dist.destroy_process_group()
"""


def flow_only(folder):
    """A run of the last stage alone."""
    flow = FlowStageConfig(steps=STEPS, batch=2, warmup=1, ema=0.5, weight_decay=0.0)
    none = {"autoencoder": AutoencoderStageConfig(steps=0), "memory": StageConfig(steps=0)}
    return replace(small_config(folder), flow=flow, **none)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    assert train(replace(flow_only(folder), out=str(folder / "one")), Quiet())  # makes the data, too
    program = folder / "program.py"
    program.write_text(PROGRAM)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(program), str(Path(__file__).parent), str(folder)]
    result = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder


def close(a, b):
    """Whether two models' weights differ by rounding alone: Adam's steps are as long where gradients are tiny."""
    one, two = load_file(a / MODEL), load_file(b / MODEL)
    moved = load_file(a / MODEL)["dit.last.weight"].abs().mean()
    assert one.keys() == two.keys() and moved > 1e-5
    difference = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
    return difference.mean() < 1e-3 * moved and difference.max() < moved


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_processes_come_to_the_weights_of_one(folder, sharding):
    assert close(folder / "one", folder / sharding)
    assert len((folder / sharding / "log.jsonl").read_text().splitlines()) == 1  # one process speaks


def test_processes_go_on_with_their_parts_of_the_weights(folder):
    assert close(folder / "one", folder / "split")


def test_one_process_goes_on_from_weights_that_were_split(folder):
    config = replace(flow_only(folder), out=str(folder / "stopped"), resume=True)
    state = RunFolder(config).read()
    assert state.step == 2 and any(name.startswith("optimizer.exp_avg.") for name in state.tensors)
    watcher = Quiet()
    assert train(config, watcher)
    assert [step for _, step, _ in watcher.losses] == [3]
    assert close(folder / "one", folder / "stopped")


def test_a_batch_is_shared_evenly():
    processes = Processes("cpu")
    assert processes.share([4, 5, 6]) == [4, 5, 6] and processes.agree(1.0, 2.0) == [1.0, 2.0]
    processes.rank, processes.count = 1, 3
    assert processes.share(list(range(6))) == [2, 3]
    with pytest.raises(ValueError, match="multiple of the 3 processes, got 4"):
        processes.share(list(range(4)))
