"""Loads the native libraries, and remembers why one is not there. Never compiles anything.

``EVOWORLD_LIBRARY_DIR`` names another folder to load them from; ``none`` loads none.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

LIBRARIES = ("cpu", "cuda")
VARIABLE = "EVOWORLD_LIBRARY_DIR"
_PACKAGE_FOLDER = Path(__file__).parent / "lib"


def folder() -> Path | None:
    """Where the libraries are looked for; None where they are switched off."""
    chosen = os.environ.get(VARIABLE)
    if chosen == "none":
        return None
    return Path(chosen) if chosen else _PACKAGE_FOLDER


def path(name: str) -> Path | None:
    """The file of the library ``cpu`` or ``cuda``, there or not; None where the libraries are switched off."""
    if name not in LIBRARIES:
        raise ValueError(f"name: expected one of {', '.join(LIBRARIES)}, got {name!r}")
    where = folder()
    return where / f"libevoworld_{name}.so" if where else None


def left_out() -> list[str]:
    """What the build of this installation left out, one line each, with how to get it."""
    notes = _PACKAGE_FOLDER / "left_out.txt"
    return notes.read_text().splitlines() if notes.is_file() else []


@cache
def missing(name: str) -> str | None:
    """Loads the library ``cpu`` or ``cuda`` if not tried before: None when it is loaded, otherwise what is missing."""
    file = path(name)
    if file is None:
        return f"switched off by {VARIABLE}=none"
    if name == "cuda" and not torch.cuda.is_available():
        return _no_gpu()
    if not file.is_file():
        notes = [line for line in left_out() if line.startswith((f"libevoworld_{name}:", "every native library:"))]
        return notes[0] if notes else f"{file} is not there; install evoworld again with a C++20 compiler on PATH"
    try:
        torch.ops.load_library(str(file))
    except OSError as error:
        return f"{file.name} does not load: {' '.join(str(error).split())}"
    return None


def load() -> None:
    """Loads every library that can be loaded. Called after the schemas of the ops are defined."""
    for name in LIBRARIES:
        missing(name)


@cache
def function(name: str, symbol: str) -> Callable | None:
    """An ``extern "C"`` function of a loaded library; None where library or function is not there."""
    if missing(name) is not None:
        return None
    return getattr(ctypes.CDLL(str(path(name))), symbol, None)


def fact(name: str, symbol: str) -> str | None:
    """What a loaded library's ``const char* symbol()`` returns; None where library or function is not there."""
    call = function(name, symbol)
    if call is None:
        return None
    call.restype = ctypes.c_char_p
    return call().decode()


def _no_gpu() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return f"torch {torch.__version__} sees no CUDA device"
