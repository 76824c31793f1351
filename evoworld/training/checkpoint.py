"""Checkpoints: a folder with safetensors files and one JSON, which is either whole or not there."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT, VERSION = "evoworld-checkpoint", 1
FACTS = "checkpoint.json"
PREFIX = "checkpoint-"
MEGABYTE = 1_000_000
HEADER = 0.02  # of a file's size, left for the names of what it holds


class CheckpointError(ValueError):
    """A checkpoint cannot be read; the message is one line that names it."""


def save_checkpoint(
    folder: Path, number: int, tensors: dict[str, Tensor], facts: dict[str, Any], max_shard_mb: float
) -> Path:
    """Writes checkpoint `number` of a run and removes the earlier ones.

    The files are written beside it and take their name together, so a process that is killed leaves the last one.

    Args:
        folder: of the run.
        number: larger than those of the checkpoints before.
        tensors: by name; on the CPU.
        facts: all else, as JSON knows it.
        max_shard_mb: of a file, megabytes; larger tensors are split.

    Raises:
        OSError: it cannot be written, or the disk is full; the checkpoint before is untouched.

    Example:
        >>> import tempfile
        >>> run = Path(tempfile.mkdtemp())
        >>> path = save_checkpoint(run, 1, {"weight": torch.arange(3.0)}, {"step": 7}, max_shard_mb=1)
        >>> load_checkpoint(path)
        ({'weight': tensor([0., 1., 2.])}, {'step': 7})
    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{PREFIX}{number:08d}-{secrets.token_hex(4)}"
    unfinished.mkdir()
    try:
        shards = _shards(tensors, max(1, int(max_shard_mb * MEGABYTE * (1 - HEADER))))
        for i, shard in enumerate(shards):
            (unfinished / _shard_name(i)).write_bytes(save(shard))
        index = {
            name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for name, tensor in tensors.items()
        }
        everything = {"format": FORMAT, "version": VERSION, "shards": len(shards), "tensors": index, "facts": facts}
        (unfinished / FACTS).write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
        for path in (*unfinished.iterdir(), unfinished):
            _sync(path)
        target = folder / f"{PREFIX}{number:08d}"
        if target.exists():
            shutil.rmtree(target)
        unfinished.rename(target)
        _sync(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    for old in _checkpoints(folder)[:-1]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def last_checkpoint(folder: Path) -> Path | None:
    """The last whole checkpoint of a run; what a killed process left half done is removed."""
    if folder.is_dir():
        for path in folder.glob(f".{PREFIX}*"):
            shutil.rmtree(path, ignore_errors=True)
    found = _checkpoints(folder)
    return found[-1] if found else None


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the facts of a checkpoint.

    Raises:
        CheckpointError: it is damaged, of another kind, or of a later version.
        OSError: a file cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        everything = json.loads((path / FACTS).read_text(encoding="utf-8"))
        if everything["format"] != FORMAT:
            raise CheckpointError(f"{path}: expected a checkpoint of evoworld, got {everything['format']!r}")
        if everything["version"] > VERSION:
            raise CheckpointError(f"{path}: written by a later version of evoworld; upgrade evoworld")
        pieces: dict[str, Tensor] = {}
        for shard in (path / _shard_name(i) for i in range(everything["shards"])):
            if not shard.is_file():
                raise CheckpointError(f"{path}: {shard.name} is missing")
            pieces |= load_file(shard)
        tensors = {
            name: _joined(pieces, name, getattr(torch, dtype), shape)
            for name, (dtype, shape) in everything["tensors"].items()
        }
        return tensors, everything["facts"]
    except CheckpointError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged ({' '.join(str(error).split())})") from error


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / FACTS).is_file())


def _shard_name(number: int) -> str:
    return f"{number:05d}.safetensors"


def _shards(tensors: dict[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    """The tensors, flat, in pieces `name/0`, `name/1`, ... so that files of at most so many bytes hold them."""
    shards, room = [{}], most
    for name, tensor in tensors.items():
        flat = tensor.detach().contiguous().view(-1)
        size = max(flat.element_size(), 1)
        start = piece = 0
        while piece == 0 or start < flat.numel():
            if room < size:
                shards.append({})
                room = most
            count = min(flat.numel() - start, max(1, room // size))
            shards[-1][f"{name}/{piece}"] = flat[start : start + count].clone()
            room -= count * size
            start += count
            piece += 1
    return shards


def _joined(pieces: dict[str, Tensor], name: str, dtype: torch.dtype, shape: list[int]) -> Tensor:
    parts = []
    while (part := pieces.get(f"{name}/{len(parts)}")) is not None:
        parts.append(part)
    if not parts:
        raise ValueError(f"tensor {name} is missing")
    tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
    if tensor.dtype != dtype:
        raise ValueError(f"{name}: expected {dtype}, got {tensor.dtype}")
    return tensor.view(shape)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
