"""The explicit 3D memory that panoramas are observed into and queried from, and the worlds that are made with it."""

from .evolve import World
from .first_write import first_write_config, observe_first
from .memory import Memory, MemoryConfig, View
from .world_file import WorldError

__all__ = ["Memory", "MemoryConfig", "View", "World", "WorldError", "first_write_config", "observe_first"]
