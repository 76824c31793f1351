"""The explicit 3D memory that panoramas are observed into and queried from."""

from .memory import Memory, MemoryConfig, View
from .world_file import WorldError

__all__ = ["Memory", "MemoryConfig", "View", "WorldError"]
