"""The explicit 3D memory that panoramas are observed into and queried from."""

from .memory import Memory, MemoryConfig, View

__all__ = ["Memory", "MemoryConfig", "View"]
