"""Loads the native libraries, and remembers why one is not there. Never compiles anything.

``EVOWORLD_LIBRARY_DIR`` names another folder to load them from; ``none`` loads none.
"""

from __future__ import annotations

import ctypes
import os
import re
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


def missing(name: str) -> str | None:
    """None where the library ``cpu`` or ``cuda`` can serve ops on this machine, otherwise what is missing."""
    reason = not_loaded(name)
    if reason is None and name == "cuda":
        devices = range(torch.cuda.device_count())
        reasons = [not_built_for(index) for index in devices]
        return None if None in reasons else reasons[torch.cuda.current_device()]
    return reason


@cache
def not_loaded(name: str) -> str | None:
    """Loads the library ``cpu`` or ``cuda`` if not tried before: None when it is loaded, otherwise why it is not.

    Does not initialise CUDA, which a process may want to do after it has forked.
    """
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


@cache
def not_built_for(device_index: int) -> str | None:
    """None where the loaded CUDA library has code for a CUDA device and its driver, otherwise what it is made for."""
    old = driver_too_old(int(fact("cuda", "evoworld_cuda_runtime")), torch._C._cuda_getDriverVersion())
    if old:
        return old
    architectures = fact("cuda", "evoworld_cuda_architectures")
    return lacking(architectures.split(), torch.cuda.get_device_capability(device_index))


def driver_too_old(runtime: int, driver: int) -> str | None:
    """None where a driver serves a CUDA runtime (13000: 13.0), which it does from its major version on.

    Example:
        >>> driver_too_old(13000, 13000), driver_too_old(12080, 13000)
        (None, None)
        >>> driver_too_old(13000, 12080)
        'built with CUDA 13.0, the driver is for 12.8; update it, or install evoworld again with the nvcc of CUDA 12'
    """
    if driver // 1000 >= runtime // 1000:
        return None
    built, there = (f"{version // 1000}.{version % 1000 // 10}" for version in (runtime, driver))
    return (
        f"built with CUDA {built}, the driver is for {there}; update it, or install evoworld again with the nvcc of "
        f"CUDA {driver // 1000}"
    )


def lacking(
    architectures: list[str],  # such as ["8.0", "9.0a", "12.0+PTX"], as in EVOWORLD_CUDA_ARCHS
    capability: tuple[int, int],  # a card's compute capability
) -> str | None:
    """None where one of the architectures serves a card, otherwise one line for its owner.

    Machine code of X.Y runs on cards X.Z with Z >= Y, of X.Ya on X.Y alone; PTX is compiled for any card from X.Y on.

    Example:
        >>> lacking(["8.0", "12.0+PTX"], (8, 6)), lacking(["8.0", "12.0+PTX"], (13, 0))
        (None, None)
        >>> lacking(["9.0a"], (10, 0))
        'built for compute capability 9.0a, this card has 10.0; install evoworld again with EVOWORLD_CUDA_ARCHS=10.0'
    """
    major, minor = capability
    for architecture in architectures:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", architecture)
        if match is None:
            raise ValueError(f"architectures: expected entries such as 9.0a or 12.0+PTX, got {architecture!r}")
        built = int(match[1]), int(match[2])
        if match[3] == "a":
            serves = capability == built
        else:
            serves = major == built[0] and minor >= built[1]
            serves = serves or (bool(match[4]) and not match[3] and capability >= built)
        if serves:
            return None
    return (
        f"built for compute capability {', '.join(architectures)}, this card has {major}.{minor}; "
        f"install evoworld again with EVOWORLD_CUDA_ARCHS={major}.{minor}"
    )


def load() -> None:
    """Loads every library that can be loaded. Called after the schemas of the ops are defined."""
    for name in LIBRARIES:
        not_loaded(name)


@cache
def function(name: str, symbol: str) -> Callable | None:
    """An ``extern "C"`` function of a loaded library; None where library or function is not there."""
    if not_loaded(name) is not None:
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
