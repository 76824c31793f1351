"""A model on disk: one safetensors file with its configuration, that is either whole or not there."""

from __future__ import annotations

import errno
import json
import os
import types
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

import evoworld

from .atomic import atomic_path

FORMAT = "evoworld-model"
VERSION = 1  # of the file; what a reader of an earlier version cannot know raises it
FROZEN = "autoencoder.frozen."  # weights of someone else's, which the configuration names the folder of
INSTALL = "safetensors is missing, which reads and writes models; pip install 'evoworld[app]'"

Config = TypeVar("Config")
Model = TypeVar("Model", bound=nn.Module)


class ModelError(ValueError):
    """A model file cannot be read; the message is one line that names the file and what was expected."""


def save_model(model: nn.Module, path: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
    """Writes a model's weights and ``model.config`` to one safetensors file, replacing an earlier one when it is whole.

    Args:
        model: with a frozen dataclass as its ``config``.
        path: of the file; its folder is made when it is missing.
        dtype: of floating-point weights in the file, such as torch.float16; None: what they are.

    Raises:
        OSError: the file cannot be written, or the disk is full; a file that was at `path` is untouched.
        ModuleNotFoundError: safetensors is not installed.
    """
    try:
        from safetensors.torch import save
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(INSTALL, name=error.name) from None
    tensors = {name: _to_store(tensor, dtype) for name, tensor in own_state(model).items()}
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "evoworld": evoworld.__version__,
        "config": json.dumps(asdict(model.config)),
    }
    content = save(tensors, metadata)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def load_model(
    model_class: type[Model], config_class: type, path: str | os.PathLike, device: torch.device | str = "cpu"
) -> Model:
    """Reads a model that `save_model` wrote: float32, in evaluation mode.

    Args:
        model_class: is called with the configuration.
        config_class: the dataclass of the configuration.
        path: of the file.
        device: where the model shall live.

    Raises:
        ModelError: the file is truncated or damaged, of another kind or a later version, or holds other weights than
            its configuration asks for.
        OSError: there is no such file, or it cannot be read.
        ModuleNotFoundError: safetensors is not installed.
    """
    path = Path(path)
    tensors, metadata = _read(path)
    try:
        model = model_class(_config(config_class, metadata))
        _take_over(model, tensors)
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from error
    return model.to(device).eval()


def load_weights(model: nn.Module, path: str | os.PathLike) -> None:
    """Gives a model the weights of a file's, which has the same parts or fewer of them; the other parts stay.

    Raises:
        ModelError: as for `load_model`, or the file's model has a part that `model` has not, or one of another shape.
        OSError, ModuleNotFoundError: as for `load_model`.
    """
    tensors, metadata = _read(Path(path))
    try:
        _check_version(metadata)
        _take_over(model, tensors, fewer=True)
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from error


def own_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model without the weights that are someone else's."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(FROZEN)}


def config_from_dict(kind: type[Config], values: object, name: str = "config") -> Config:
    """A frozen dataclass, of others too, from what JSON holds of it.

    A field that is not there is its default: it came after the file, which did without.

    Raises:
        ValueError: a field is unknown or of another type, or one without a default is missing; the message names it.

    Example:
        >>> from evoworld.world.autoencoder import AutoencoderConfig
        >>> config_from_dict(AutoencoderConfig, asdict(AutoencoderConfig(dim=8))).dim
        8
    """
    if not isinstance(values, dict):
        raise ValueError(f"{name}: expected fields of {kind.__name__}, got {values!r:.60}")
    kinds = get_type_hints(kind)
    needed = {field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING}
    different = (set(values) - {field.name for field in fields(kind)}) | (needed - set(values))
    if different:
        named = ", ".join(sorted(different))
        raise ValueError(f"{name}: expected the fields of {kind.__name__}, of which these miss or are unknown: {named}")
    return kind(**{field: _convert(kinds[field], value, f"{name}.{field}") for field, value in values.items()})


def _convert(kind: Any, value: object, name: str) -> object:
    if isinstance(kind, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        kind = next(one for one in get_args(kind) if one is not type(None))
    if is_dataclass(kind):
        return config_from_dict(kind, value, name)
    if get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(get_args(kind)[0], one, name) for one in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(kind, type) or not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name}: expected {getattr(kind, '__name__', kind)}, got {value!r:.60}")
    return value


def _to_store(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().cpu()
    return (tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor).contiguous().clone()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(INSTALL, name=error.name) from None
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with open(path, "rb"):
        pass  # raises the system's own error, with the file's name
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                found = metadata.get("format")
                raise ModelError(f"{path}: expected a model of evoworld, got another safetensors file (format {found})")
            return {name: file.get_tensor(name).clone() for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: expected a whole safetensors file, got a truncated or other one ({error})"
        ) from error


def _check_version(metadata: dict[str, str]) -> None:
    version = metadata.get("version", "")
    if not version.isdecimal():
        raise ModelError(f"version: expected a whole number, got {version!r}")
    if int(version) > VERSION:
        raise ModelError(
            f"written by a later version of evoworld (file version {version}, known {VERSION}); upgrade evoworld"
        )


def _config(kind: type, metadata: dict[str, str]) -> object:
    _check_version(metadata)
    try:
        values = json.loads(metadata.get("config", ""))
    except ValueError:
        raise ModelError(f"config: expected JSON in the header, got {metadata.get('config', '')[:80]!r}") from None
    return config_from_dict(kind, values)


def _take_over(model: nn.Module, found: dict[str, Tensor], fewer: bool = False) -> None:
    expected = own_state(model)
    different = found.keys() - expected.keys() if fewer else expected.keys() ^ found.keys()
    if different:
        names = sorted(different)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ModelError(
            f"expected the weights of the configuration, of which these miss or add: {', '.join(names[:3])}{more}"
        )
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            raise ModelError(f"{name}: expected shape {list(expected[name].shape)}, got {list(tensor.shape)}")
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{name}: expected finite values, got NaN or infinity")
    model.load_state_dict(found, strict=False)
