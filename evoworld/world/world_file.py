"""A memory on disk: one safetensors file that is either whole or not there."""

from __future__ import annotations

import errno
import json
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import get_args, get_type_hints

import torch
from torch import Tensor

import evoworld
from evoworld.geometry import check_pose

from .atomic import atomic_path
from .level import NEAR
from .memory import Memory, MemoryConfig
from .surfels import SIZE

FORMAT = "evoworld-world"
VERSION = 2  # of the file; what a reader of an earlier version cannot know raises it
ADDED = {"surfels": False, "near": NEAR}  # parts of the configuration that version 1 did not have, and what it did
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.int32: "I32"}  # torch's names and the format's
ALIGNMENT = 8  # bytes, of the first tensor


class WorldError(ValueError):
    """A world file cannot be read; the message is one line that names the file and what was expected."""


def save_world(memory: Memory, path: str | os.PathLike) -> None:
    """Writes a memory to one safetensors file, which takes the place of an earlier one only when it is whole.

    The tensors go to disk one after the other, without a copy of the world. (The library's own writer would hide which
    error the system gave, and leave a file that only its owner may read.)

    Args:
        memory: what to write.
        path: of the file; its folder is made when it is missing.

    Raises:
        OSError: the file cannot be written, or the disk is full; a file that was at `path` is untouched.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "world.safetensors"
        >>> save_world(Memory(voxel_size=0.1), path)
        >>> load_world(path).voxel_size
        0.1
    """
    tensors = world_tensors(memory)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(_header(tensors, world_metadata(memory)))
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().numpy())


def load_world(path: str | os.PathLike, device: torch.device | str = "cpu") -> Memory:
    """Reads a memory that `save_world` wrote; it answers and goes on observing as the one that was saved.

    Args:
        path: of the file.
        device: where the memory shall live.

    Raises:
        WorldError: the file is truncated or damaged, not a world, or of a later version.
        OSError: there is no such file, or it cannot be read.
        ModuleNotFoundError: safetensors is not installed.
    """
    with _opened(Path(path)) as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise WorldError(
                f"expected a world of evoworld, got another safetensors file (format {metadata.get('format')})"
            )
        _check_version(metadata.get("version", ""))
        config = _parse_config(metadata.get("config", ""))
        memory = _empty_memory(config, device)
        expected = world_tensors(memory)
        if set(file.keys()) != set(expected):
            names = ", ".join(sorted(set(file.keys()) ^ set(expected)))
            raise WorldError(
                f"expected the tensors of {len(memory.levels)} levels, of which these miss or add: {names}"
            )
        tensors = {name: _read(file, name, like) for name, like in expected.items()}
        _check_world(memory, tensors)
        reaches = [
            _parse_reaches(name, metadata.get(name, ""), len(memory.levels)) for name in ("reach", "dense_reach")
        ]
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        for i, (level, reach, dense_reach) in enumerate(zip(memory.levels, *reaches, strict=True)):
            level.restore({name: tensors[f"level{i}.{name}"] for name in level.tensors()}, reach, dense_reach)
        memory.background.sums, memory.poses = tensors["background.sums"], tensors["poses"]
        if config.surfels:
            memory.surfels.rows = tensors["surfels"]
            memory.viewpoints.places, memory.viewpoints.ranges = tensors["viewpoints"], tensors["viewpoints.ranges"]
        memory.prompt = metadata.get("prompt", "")
    return memory


def world_tensors(memory: Memory) -> dict[str, Tensor]:
    """The tensors of a world file by their names."""
    tensors = {f"level{i}.{name}": t for i, level in enumerate(memory.levels) for name, t in level.tensors().items()}
    tensors |= {"background.sums": memory.background.sums, "poses": memory.poses}
    if memory.config.surfels:
        viewpoints = memory.viewpoints
        tensors |= {
            "surfels": memory.surfels.rows,
            "viewpoints": viewpoints.places,
            "viewpoints.ranges": viewpoints.ranges,
        }
    return tensors


def world_metadata(memory: Memory) -> dict[str, str]:
    """What the header of a world file says besides names and shapes."""
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "evoworld": evoworld.__version__,
        "config": json.dumps(_without_infinity(asdict(memory.config))),
        "prompt": memory.prompt,
        "reach": json.dumps([level.reach for level in memory.levels]),
        "dense_reach": json.dumps([level.dense_reach for level in memory.levels]),
    }


def _header(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """The format's header: its length in 8 bytes, and JSON that says where in the rest each tensor lies."""
    entries, end = {"__metadata__": metadata}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


@contextmanager
def _opened(path: Path) -> Iterator:
    """The safetensors file at a path; every ValueError of the block becomes a WorldError that names it."""
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError as error:
        message = "safetensors is missing, which reads world files; pip install 'evoworld[app]'"
        raise ModuleNotFoundError(message, name=error.name) from None
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with open(path, "rb"):
        pass  # raises the system's own error, with the file's name
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise WorldError(
            f"{path}: expected a whole safetensors file, got a truncated or other one ({error})"
        ) from error
    except ValueError as error:
        raise WorldError(f"{path}: {error}") from error


def _check_version(version: str) -> None:
    if not version.isdecimal():
        raise WorldError(f"version: expected a whole number, got {version!r}")
    if int(version) > VERSION:
        raise WorldError(
            f"written by a later version of evoworld (file version {version}, known {VERSION}); upgrade evoworld"
        )


def _parse_config(text: str) -> MemoryConfig:
    """The configuration of the header, with the types that its fields declare."""
    values = ADDED | _parse_json("config", text, dict)
    kinds = get_type_hints(MemoryConfig)
    if values.keys() != kinds.keys():
        raise WorldError(f"config: expected {', '.join(kinds)}, got {', '.join(values)}")
    parsed = {}
    for name, kind in kinds.items():
        try:
            parsed[name] = _convert(values[name], kind)
        except (TypeError, ValueError):
            raise WorldError(f"config: {name}: expected {kind}, got {values[name]!r}") from None
    config = MemoryConfig(**parsed)
    if len(config.scales) < 2 or config.scales[1] != 1:
        raise WorldError(
            f"config: scales: expected a coarse scale, 1 for the base level, finer ones; got {config.scales}"
        )
    return config


def _convert(value, kind: type):
    """A JSON value as a bool, an int, a float of 0 or more, or a tuple; ValueError or TypeError if it is none."""
    if kind is bool:
        if not isinstance(value, bool):
            raise TypeError
        return value
    if kind in (int, float):
        number = math.inf if value == "inf" and kind is float else value
        if isinstance(number, bool) or not isinstance(number, (int, kind)) or not number >= 0:
            raise ValueError
        return kind(number)
    if not isinstance(value, list):
        raise TypeError
    kinds = get_args(kind)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    return tuple(_convert(x, one) for x, one in zip(value, kinds, strict=True))


def _empty_memory(config: MemoryConfig, device: torch.device | str) -> Memory:
    try:
        return Memory(config.voxel_size, config.feature_dim, config=config, device=device)
    except ValueError as error:
        raise WorldError(f"config: {error}") from error


def _parse_reaches(name: str, text: str, num_levels: int) -> list[float]:
    try:
        values = _convert(_parse_json(name, text, list), tuple[float, ...])
    except (TypeError, ValueError):
        values = ()
    if len(values) != num_levels or math.inf in values:
        raise WorldError(f"{name}: expected {num_levels} distances in metres, got {text[:80]!r}")
    return list(values)


def _parse_json(name: str, text: str, kind: type):
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, kind):
        raise WorldError(f"{name}: expected JSON in the header, got {text[:80]!r}")
    return value


def _without_infinity(value):
    """JSON has no infinity: the string "inf"."""
    if isinstance(value, dict):
        return {name: _without_infinity(x) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinity(x) for x in value]
    return "inf" if value == math.inf else value


def _read(file, name: str, like: Tensor) -> Tensor:
    """A tensor of the file, in memory of its own: with the dtype, rank and last dimensions of an empty world's."""
    tensor = file.get_tensor(name)
    free = 2 if name == "background.sums" else 1  # leading dimensions that depend on what was observed
    if tensor.dtype != like.dtype or tensor.ndim != like.ndim or tensor.shape[free:] != like.shape[free:]:
        sizes = ", ".join(["*"] * free + [str(n) for n in like.shape[free:]])
        raise WorldError(f"{name}: expected {like.dtype} [{sizes}], got {tensor.dtype} {list(tensor.shape)}")
    if not torch.isfinite(tensor).all():
        raise WorldError(f"{name}: expected finite values, got NaN or infinity")
    return tensor.clone()  # what the library gives may be the file itself, mapped


def _check_world(memory: Memory, tensors: dict[str, Tensor]) -> None:
    """What holds between the tensors of a file, and between their values."""
    for i, level in enumerate(memory.levels):
        rows = tensors[f"level{i}.brick_coordinates"].shape[0] * level.grid.edge**3
        for name in level.tensors():
            tensor = tensors[f"level{i}.{name}"]
            if name == "brick_coordinates":
                continue
            if tensor.shape[0] != rows:
                raise WorldError(
                    f"level{i}.{name}: expected {rows} rows for the bricks there are, got {tensor.shape[0]}"
                )
            weight = {"sums": tensor[..., -1:], "distance_sum": tensor[:0]}.get(name, tensor)
            if (weight < 0).any():
                raise WorldError(f"level{i}.{name}: expected weights of 0 or more, got {weight.min():.3g}")
    height, width = tensors["background.sums"].shape[:2]
    if width != 2 * height:
        raise WorldError(f"background.sums: expected twice as many columns as rows, got {height} x {width}")
    if "surfels" in tensors and not (tensors["surfels"][:, SIZE] > 0).all():
        raise WorldError(f"surfels: expected sizes above 0, got {tensors['surfels'][:, SIZE].min():.3g}")
    if "viewpoints" in tensors and len(tensors["viewpoints"]) != len(tensors["viewpoints.ranges"]):
        counts = len(tensors["viewpoints"]), len(tensors["viewpoints.ranges"])
        raise WorldError(f"viewpoints: expected as many places as ranges, got {counts[0]} and {counts[1]}")
    check_pose(tensors["poses"], "poses")
