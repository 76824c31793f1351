"""Saving a world: whatever stops it, the file at the path is a whole one, the earlier or the later."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from evoworld.geometry import Panorama
from evoworld.world import Memory

REPOSITORY = Path(__file__).resolve().parents[2]
KILLS = 20

# Reads lines "path<tab>limit", each of which makes it fork a process that saves two worlds in turn until it is stopped,
# by a signal or by the largest file that it may write; says the process's id, and its status when it has ended. The
# process ends with the error's number, or 255 if the error does not name the path.
SAVER = """
import os, resource, signal, sys
import torch
from evoworld.geometry import Panorama
from evoworld.world import Memory

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever this process was started with
memories = []
for brightness in (0.25, 0.75):
    memory = Memory(0.1)
    memory.observe(torch.full((32, 64, 3), brightness), torch.ones(32, 64), torch.eye(4), Panorama(32, 64))
    memories.append(memory)
for line in sys.stdin:
    path, limit = line.rstrip().split(chr(9))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # until the child is ready for it
    child = os.fork()
    if child == 0:
        code = 255
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), -1))  # Python ignores SIGXFSZ: writing raises
            while True:
                for memory in memories:
                    memory.save(path)
        except KeyboardInterrupt:
            code = 130
        except OSError as error:
            code = error.errno if error.filename == path else 255
        finally:
            os._exit(code)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Saver:
    """Starts processes that save for ever, and stops them."""

    def __init__(self):
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, "-c", SAVER], stdin=pipe, stdout=pipe, text=True, cwd=REPOSITORY
        )

    def start(self, path, limit=-1):
        print(path, limit, sep="\t", file=self._process.stdin, flush=True)
        self._child = int(self._process.stdout.readline())

    def stop(self, number):
        os.kill(self._child, number)
        return self.status()

    def status(self):
        """The exit code when it has ended, or minus the signal that ended it."""
        return os.waitstatus_to_exitcode(int(self._process.stdout.readline()))

    def close(self):
        self._process.stdin.close()
        self._process.wait(30)


@pytest.fixture(scope="module")
def saver():
    saver = Saver()
    yield saver
    saver.close()


def test_a_process_killed_while_saving_leaves_a_whole_file(saver, tmp_path):
    """The file is there from the first save on; at any moment it is one of the two worlds."""
    path = tmp_path / "w.safetensors"
    patience = random.Random(0)
    seen = set()
    for _ in range(KILLS):
        saver.start(path)
        wait_for(path)
        time.sleep(patience.uniform(0.0, 0.05))
        Memory.load(path)  # while it is being saved
        assert saver.stop(signal.SIGKILL) == -signal.SIGKILL
        seen.add(brightness_of(path))
    assert seen <= {0.25, 0.75}
    halves = [file for file in tmp_path.iterdir() if file != path]
    assert halves and all(file.name.startswith(".w.") for file in halves)  # some were killed in the midst of it


def test_ctrl_c_while_saving_removes_the_temporary_file(saver, tmp_path):
    path = tmp_path / "w.safetensors"
    patience = random.Random(0)
    for _ in range(KILLS):
        saver.start(path)
        wait_for(path)
        time.sleep(patience.uniform(0.0, 0.02))
        assert saver.stop(signal.SIGINT) == 130
        assert os.listdir(tmp_path) == [path.name]
        assert brightness_of(path) in (0.25, 0.75)


@pytest.mark.parametrize("call", [1, 2, 5])
def test_ctrl_c_at_any_write_leaves_the_earlier_file(tmp_path, monkeypatch, call):
    world = tmp_path / "world.safetensors"
    Memory(0.1).save(world)
    before = world.read_bytes()
    calls = []

    def interrupted(tensor):
        calls.append(tensor)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(tensor)

    original = torch.Tensor.numpy
    monkeypatch.setattr(torch.Tensor, "numpy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Memory(0.5).save(world)
    assert world.read_bytes() == before and os.listdir(world.parent) == [world.name]


@pytest.mark.parametrize("room", [0, 100, 100_000])
def test_a_full_disk_is_named_and_leaves_the_earlier_file(saver, tmp_path, room):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"before")
    saver.start(path, limit=room)
    assert saver.status() == errno.EFBIG
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == [path.name]


def test_a_folder_at_the_path_is_an_error_with_its_name(tmp_path):
    (tmp_path / "w.safetensors").mkdir()
    with pytest.raises(OSError) as error:
        Memory(0.1).save(tmp_path / "w.safetensors")
    assert error.value.filename == str(tmp_path / "w.safetensors")
    assert os.listdir(tmp_path) == ["w.safetensors"]


def wait_for(path):
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, "nothing was saved"
        time.sleep(0.001)


def brightness_of(path):
    """What a world of one brightness shows, rounded; it shows one only if the file is whole."""
    features = Memory.load(path).query(Panorama(4, 8), torch.eye(4)).features
    assert features.max() - features.min() < 1e-3
    return round(features.mean().item(), 3)
