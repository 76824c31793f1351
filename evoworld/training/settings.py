"""Frozen dataclasses from plain dictionaries and back, as YAML files and checkpoints hold them."""

from __future__ import annotations

import types
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Settings = TypeVar("Settings")


def with_changes(settings: Settings, changes: dict[str, Any], where: str = "") -> Settings:
    """The settings with those replaced that a nested dictionary names.

    Args:
        settings: a dataclass; fields may be dataclasses, numbers, strings, truths, None, tuples of these.
        changes: new values; a dictionary for a field that is a dataclass.
        where: what the message of an error starts with.

    Raises:
        ValueError: a name that is no field, a value of another type, or one that the dataclass itself refuses.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Size:
        ...     height: int = 4
        ...     scales: tuple[float, ...] = (1.0,)
        >>> with_changes(Size(), {"scales": [1, 2.5]})
        Size(height=4, scales=(1.0, 2.5))
    """
    known = {field.name: getattr(settings, field.name) for field in fields(settings)}
    kinds = get_type_hints(type(settings))
    new = {}
    for name, value in changes.items():
        label = f"{where}{name}"
        if name not in known:
            raise ValueError(f"{label}: no such setting; expected one of {', '.join(known)}")
        if is_dataclass(known[name]) and isinstance(value, dict):
            new[name] = with_changes(known[name], value, f"{label}.")
        else:
            try:
                new[name] = _converted(value, kinds[name])
            except (TypeError, ValueError):
                raise ValueError(f"{label}: expected {_spelled(kinds[name])}, got {value!r}") from None
    return replace(settings, **new)


def as_plain(settings: Any) -> dict[str, Any]:
    """The dictionary that `with_changes` takes, of what JSON knows.

    Example:
        >>> from evoworld.training import DataConfig
        >>> as_plain(DataConfig(captures=("a", "b")))["captures"]
        ['a', 'b']
    """
    return _plain(asdict(settings))


def differences(a: dict[str, Any], b: dict[str, Any], where: str = "") -> dict[str, tuple[Any, Any]]:
    """What differs between two plain dictionaries: the path of each value, and both values.

    Example:
        >>> differences({"flow": {"batch": 1, "rate": 0.1}}, {"flow": {"batch": 2, "rate": 0.1}})
        {'flow.batch': (1, 2)}
    """
    found = {}
    for name in [*a, *(name for name in b if name not in a)]:
        one, two = a.get(name), b.get(name)
        if isinstance(one, dict) and isinstance(two, dict):
            found |= differences(one, two, f"{where}{name}.")
        elif one != two:
            found[f"{where}{name}"] = (one, two)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(x) for name, x in value.items()}
    return [_plain(x) for x in value] if isinstance(value, (list, tuple)) else value


def _converted(value: Any, kind: Any) -> Any:
    """The value as the type says; TypeError or ValueError if it is of another."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _converted(value, next(x for x in arguments if x is not type(None)))
    if origin is Literal:
        if value not in arguments:
            raise ValueError
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_converted(x, one) for x, one in zip(value, kinds, strict=True))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str):
        return float(value)  # YAML reads 3e-4 as a string
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError
    return value


def _spelled(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
