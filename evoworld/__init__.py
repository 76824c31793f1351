"""EvoWorld: a 360° world you can generate, remember and walk through.

``import evoworld`` loads neither triton nor any optional dependency; the parts below are imported when first used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import data, evaluation, geometry, nn, ops, reference, world
    from .ops.backend import backend
    from .world.evolve import World

__version__ = "0.1.0"

if not (Path(__file__).parent / "kernels").is_dir():  # the source tree, where kernels/ lies beside the package
    __path__.append(str(Path(__file__).resolve().parent.parent))

__all__ = ["World", "__version__", "backend", "data", "evaluation", "geometry", "nn", "ops", "reference", "world"]


def __getattr__(name: str) -> Any:
    if name == "backend":
        return importlib.import_module(".ops.backend", __name__).backend
    if name == "World":
        return importlib.import_module(".world.evolve", __name__).World
    if name in __all__:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
