"""Procedural worlds: infinite, the same for the same seed on every machine, rendered in torch on any device."""

from .apartment import make_apartment
from .captions import caption
from .courtyard import make_courtyard
from .render import Rendering, render
from .scene import Room, Thing, World
from .walks import LEVEL_WALKS, WALKS, make_walk

VERSION = 3  # grows whenever a seed gives another world, walk, picture or caption than before

__all__ = [
    "LEVEL_WALKS",
    "VERSION",
    "WALKS",
    "Rendering",
    "Room",
    "Thing",
    "World",
    "caption",
    "make_apartment",
    "make_courtyard",
    "make_walk",
    "render",
]
