"""Colours that have names, and the surfaces of rooms."""

from __future__ import annotations

from random import Random

from .patterns import Pattern
from .scene import Colour, Material

COLOURS: dict[str, Colour] = {  # linear
    "white": (0.80, 0.80, 0.78),
    "grey": (0.35, 0.35, 0.36),
    "black": (0.03, 0.03, 0.035),
    "red": (0.55, 0.05, 0.04),
    "dark red": (0.25, 0.02, 0.03),
    "orange": (0.75, 0.27, 0.04),
    "yellow": (0.80, 0.60, 0.08),
    "green": (0.08, 0.36, 0.09),
    "dark green": (0.02, 0.13, 0.05),
    "turquoise": (0.05, 0.42, 0.42),
    "blue": (0.05, 0.13, 0.55),
    "dark blue": (0.02, 0.04, 0.20),
    "purple": (0.24, 0.06, 0.35),
    "pink": (0.78, 0.30, 0.40),
    "brown": (0.22, 0.10, 0.04),
    "beige": (0.62, 0.50, 0.34),
}
WOODS: dict[str, Colour] = {
    "oak": (0.45, 0.27, 0.12),
    "walnut": (0.16, 0.08, 0.04),
    "pine": (0.62, 0.42, 0.20),
    "white wood": (0.72, 0.70, 0.66),
}
WALLS: dict[str, Colour] = {
    "white": (0.78, 0.77, 0.74),
    "cream": (0.76, 0.68, 0.50),
    "pale green": (0.52, 0.64, 0.47),
    "pale blue": (0.47, 0.60, 0.72),
    "pale pink": (0.75, 0.55, 0.53),
    "yellow": (0.78, 0.62, 0.24),
    "grey": (0.45, 0.45, 0.46),
    "terracotta": (0.52, 0.22, 0.12),
    "dark blue": (0.07, 0.11, 0.24),
}


def shade(colour: Colour, factor: float) -> Colour:
    return tuple(min(1.0, c * factor) for c in colour)


def coloured(random: Random, names: list[str] | None = None) -> tuple[str, Colour]:
    """A name of a colour and a shade of it."""
    name = random.choice(names or list(COLOURS))
    return name, shade(COLOURS[name], random.uniform(0.85, 1.15))


def wood(random: Random) -> tuple[str, Material]:
    name = random.choice(list(WOODS))
    colour = shade(WOODS[name], random.uniform(0.85, 1.15))
    return name, Material(colour, shade(colour, 0.7), Pattern.PLANKS, random.uniform(0.8, 1.6))


def floor(random: Random, wet: bool) -> tuple[str, Material]:
    """A floor and what one would call it."""
    kind = random.choice(["tiles", "checks"] if wet else ["wood", "wood", "carpet", "tiles", "checks"])
    if kind == "wood":
        name, material = wood(random)
        return f"{name if name.endswith('wood') else name + ' wood'} floor", material
    name, colour = coloured(random, ["white", "grey", "beige", "brown", "dark blue", "dark green"])
    if kind == "carpet":
        return f"{name} carpet", Material(colour, shade(colour, 0.8), Pattern.SPECKLES, 0.12)
    if kind == "tiles":
        return f"{name} tiles on the floor", Material(
            colour, shade(colour, 0.35), Pattern.TILES, random.uniform(0.3, 0.6)
        )
    dark = shade(colour, 0.25)
    return f"{name} chequered floor", Material(colour, dark, Pattern.CHECKS, random.uniform(0.4, 0.7))


def wall(random: Random, wet: bool) -> tuple[str, Material]:
    name = random.choice(list(WALLS))
    colour = shade(WALLS[name], random.uniform(0.9, 1.1))
    if wet and random.random() < 0.7:
        return f"{name} tiled walls", Material(colour, shade(colour, 0.5), Pattern.TILES, random.uniform(0.2, 0.4))
    kind = random.random()
    if kind < 0.15:
        return f"{name} striped walls", Material(colour, shade(colour, 0.8), Pattern.STRIPES, random.uniform(0.25, 0.5))
    if kind < 0.25:
        red = shade(WALLS["terracotta"], random.uniform(0.8, 1.2))
        return "brick walls", Material(red, shade(WALLS["grey"], 1.2), Pattern.BRICKS, 0.35)
    return f"{name} walls", Material(colour, shade(colour, 0.85), Pattern.PLAIN, 1.0)
