"""Furniture: each piece is a function that stands some solids on a spot of floor and says what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from .palette import coloured, shade, wood
from .patterns import Pattern
from .scene import Colour, Material, WorldBuilder
from .solids import BOX, CYLINDER, ELLIPSOID


@dataclass
class Spot:
    """A rectangle of floor with a back: `across` runs along the back, `out` away from it."""

    builder: WorldBuilder
    random: Random
    x: float  # metres, the middle of the back
    y: float
    along: tuple[int, int]  # unit vectors of the world
    outward: tuple[int, int]
    width: float  # metres across
    length: float  # metres out
    object_id: int = 0

    def _place(self, across: float, out: float) -> tuple[float, float]:
        (ax, ay), (ox, oy) = self.along, self.outward
        return self.x + ax * across + ox * out, self.y + ay * across + oy * out

    def _solid(self, kind: int, across, out, height, half, material: Material, yaw: float = 0.0) -> None:
        x, y = self._place(across, out)
        half = half if self.along[0] else (half[1], half[0], half[2])
        builder = self.builder
        builder.solids.add(kind, (x, y, height), half, builder.material(material), self.object_id, yaw)

    def box(self, across, out, height, material: Material, yaw: float = 0.0) -> None:
        """A box by its ranges (low, high) across, out and in height."""
        (a0, a1), (o0, o1), (z0, z1) = across, out, height
        half = ((a1 - a0) / 2, (o1 - o0) / 2, (z1 - z0) / 2)
        self._solid(BOX, (a0 + a1) / 2, (o0 + o1) / 2, (z0 + z1) / 2, half, material, yaw)

    def ball(self, across, out, height, radii, material: Material) -> None:
        self._solid(ELLIPSOID, across, out, height, radii, material)

    def pillar(self, across, out, height, radius, material: Material) -> None:
        z0, z1 = height
        self._solid(CYLINDER, across, out, (z0 + z1) / 2, (radius, radius, (z1 - z0) / 2), material)

    def legs(self, across, out, top, material: Material, size: float = 0.05) -> None:
        """Four legs at the corners of a rectangle."""
        for a in across:
            for o in out:
                self.box((a - size / 2, a + size / 2), (o - size / 2, o + size / 2), (0, top), material)


def _cloth(random: Random, colour: Colour) -> Material:
    pattern = random.choice([Pattern.PLAIN, Pattern.PLAIN, Pattern.SPECKLES, Pattern.STRIPES, Pattern.DOTS])
    period = {Pattern.SPECKLES: 0.1, Pattern.STRIPES: 0.2, Pattern.DOTS: 0.25}.get(pattern, 0.8)
    return Material(colour, shade(colour, 0.7), pattern, period)


def sofa(s: Spot) -> str:
    name, colour = coloured(s.random)
    cloth, w, d = _cloth(s.random, colour), s.width / 2, s.length
    s.box((-w, w), (0, d), (0.05, 0.42), cloth)
    s.box((-w, w), (0, 0.22), (0.42, 0.85), cloth)
    for side in (-1, 1):
        s.box(tuple(sorted((side * w, side * (w - 0.18)))), (0, d), (0.42, 0.62), cloth)
    other = Material(coloured(s.random)[1])
    s.box((-w + 0.25, -w + 0.65), (0.24, 0.36), (0.42, 0.78), other)
    return name


def armchair(s: Spot) -> str:
    return sofa(s)


def bed(s: Spot) -> str:
    name, colour = coloured(s.random)
    _, timber = wood(s.random)
    w, d = s.width / 2, s.length
    s.box((-w, w), (0, d), (0.0, 0.3), timber)
    s.box((-w, w), (0, 0.08), (0.3, s.random.uniform(0.8, 1.2)), timber)
    s.box((-w + 0.03, w - 0.03), (0.1, d - 0.03), (0.3, 0.5), Material((0.75, 0.75, 0.73)))
    s.box((-w, w), (0.7, d), (0.31, 0.54), _cloth(s.random, colour))
    for across in ((-w / 2,), (w / 2,)) if s.width > 1.2 else ((0,),):
        s.ball(across[0], 0.36, 0.55, (0.3, 0.19, 0.09), Material((0.8, 0.8, 0.8)))
    return name


def wardrobe(s: Spot) -> str:
    name, timber = wood(s.random)
    w, top = s.width / 2, s.random.uniform(1.8, 2.2)
    s.box((-w, w), (0, s.length), (0, top), timber)
    for across in (-0.06, 0.06):
        s.box((across - 0.015, across + 0.015), (s.length, s.length + 0.03), (0.95, 1.15), Material((0.1, 0.1, 0.1)))
    return name


def bookshelf(s: Spot) -> str:
    name, timber = wood(s.random)
    w, d, top = s.width / 2, s.length, s.random.uniform(1.5, 2.1)
    s.box((-w, w), (0, 0.03), (0, top), timber)
    for across in (-w, w - 0.04):
        s.box((across, across + 0.04), (0, d), (0, top), timber)
    levels = 4
    for i in range(levels + 1):
        z = i * (top - 0.04) / levels
        s.box((-w, w), (0, d), (z, z + 0.04), timber)
        if i < levels:
            end = s.random.uniform(0.3, 1.0) * (s.width - 0.1)
            period = s.random.uniform(0.2, 0.5)
            books = Material(coloured(s.random)[1], coloured(s.random)[1], Pattern.PICTURE, period)
            s.box((-w + 0.05, -w + 0.05 + end), (0.03, d - 0.05), (z + 0.04, z + 0.04 + 0.6 * top / levels), books)
    return name


def table(s: Spot) -> str:
    name, timber = wood(s.random)
    w, d, top = s.width / 2, s.length, 0.74
    s.box((-w, w), (0, d), (top - 0.05, top), timber)
    s.legs((-w + 0.06, w - 0.06), (0.06, d - 0.06), top - 0.05, timber)
    s.pillar(s.random.uniform(-w / 2, w / 2), d / 2, (top, top + 0.22), 0.08, Material(coloured(s.random)[1]))
    return name


def coffee_table(s: Spot) -> str:
    name, timber = wood(s.random)
    w, d = s.width / 2, s.length
    s.box((-w, w), (0, d), (0.36, 0.42), timber)
    s.legs((-w + 0.05, w - 0.05), (0.05, d - 0.05), 0.36, timber)
    return name


def chair(s: Spot) -> str:
    name, colour = coloured(s.random)
    material, w, d = Material(colour), s.width / 2, s.length
    s.box((-w, w), (0, d), (0.42, 0.47), material)
    s.box((-w, w), (0, 0.05), (0.47, 0.92), material)
    s.legs((-w + 0.03, w - 0.03), (0.03, d - 0.03), 0.42, material, 0.04)
    return name


def desk(s: Spot) -> str:
    name = table(s)
    screen = s.random.uniform(-0.2, 0.2)
    s.box((screen - 0.28, screen + 0.28), (0.12, 0.16), (0.84, 1.2), Material((0.03, 0.03, 0.04)))
    s.box((screen - 0.04, screen + 0.04), (0.12, 0.2), (0.74, 0.84), Material((0.2, 0.2, 0.2)))
    return name


def kitchen_counter(s: Spot) -> str:
    name, colour = coloured(s.random)
    w, d = s.width / 2, s.length
    s.box((-w, w), (0, d), (0, 0.86), Material(colour, shade(colour, 0.6), Pattern.TILES, 0.6))
    s.box((-w, w), (0, d + 0.02), (0.86, 0.9), Material((0.25, 0.24, 0.23), None, Pattern.SPECKLES, 0.1))
    s.box((-w, w), (0, 0.34), (1.45, 2.1), Material(colour, shade(colour, 0.6), Pattern.TILES, 0.6))
    s.box((-w / 2 - 0.25, -w / 2 + 0.25), (0.1, 0.5), (0.9, 0.905), Material((0.02, 0.02, 0.02)))
    s.pillar(w / 2, 0.3, (0.9, 1.08), 0.11, Material(coloured(s.random)[1]))
    return name


def fridge(s: Spot) -> str:
    name, colour = coloured(s.random, ["white", "grey", "red", "turquoise", "black"])
    w = s.width / 2
    s.box((-w, w), (0, s.length), (0, 1.8), Material(colour, shade(colour, 0.5), Pattern.TILES, 1.2))
    s.box((w - 0.1, w - 0.06), (s.length, s.length + 0.04), (0.7, 1.3), Material((0.15, 0.15, 0.15)))
    return name


def bathtub(s: Spot) -> str:
    w, d = s.width / 2, s.length
    white = Material((0.82, 0.83, 0.83))
    s.box((-w, w), (0, d), (0, 0.12), white)
    s.box((-w, w), (0, 0.08), (0.12, 0.58), white)
    s.box((-w, w), (d - 0.08, d), (0.12, 0.58), white)
    s.box((-w, -w + 0.1), (0, d), (0.12, 0.58), white)
    s.box((w - 0.1, w), (0, d), (0.12, 0.58), white)
    s.box((-w + 0.1, w - 0.1), (0.08, d - 0.08), (0.12, 0.4), Material((0.25, 0.5, 0.6)))
    return "white"


def washbasin(s: Spot) -> str:
    w = s.width / 2
    white = Material((0.82, 0.83, 0.83))
    s.pillar(0, s.length / 2, (0, 0.7), 0.1, white)
    s.box((-w, w), (0, s.length), (0.7, 0.86), white)
    s.box((-w, w), (0, 0.02), (1.1, 1.8), Material((0.5, 0.58, 0.62), (0.6, 0.68, 0.72)))
    return "white"


def toilet(s: Spot) -> str:
    white = Material((0.82, 0.83, 0.83))
    s.box((-0.2, 0.2), (0, 0.2), (0.3, 0.8), white)
    s.ball(0, 0.4, 0.25, (0.2, 0.28, 0.2), white)
    return "white"


def plant(s: Spot) -> str:
    middle, top = s.length / 2, s.random.uniform(0.8, 1.7)
    pot, green = Material(coloured(s.random)[1]), (0.05, s.random.uniform(0.18, 0.35), 0.04)
    s.pillar(0, middle, (0, 0.35), 0.17, pot)
    s.pillar(0, middle, (0.35, top - 0.2), 0.03, Material((0.2, 0.11, 0.05)))
    leaves = Material(green, shade(green, 0.35), Pattern.SPECKLES, 0.25)
    s.ball(0, middle, top - 0.15, (0.26, 0.26, 0.33), leaves)
    s.ball(0.12, middle, top - 0.4, (0.2, 0.18, 0.2), leaves)
    return "tall" if top > 1.3 else "small"


def floor_lamp(s: Spot) -> str:
    name, colour = coloured(s.random, ["white", "orange", "yellow", "pink", "beige"])
    middle = s.length / 2
    s.pillar(0, middle, (0, 0.03), 0.15, Material((0.05, 0.05, 0.05)))
    s.pillar(0, middle, (0.03, 1.4), 0.02, Material((0.05, 0.05, 0.05)))
    s.pillar(0, middle, (1.4, 1.68), 0.17, Material(colour, emission=1.2))
    return name


def television(s: Spot) -> str:
    name, timber = wood(s.random)
    w = s.width / 2
    s.box((-w, w), (0, s.length), (0, 0.45), timber)
    s.box(
        (-0.42 * s.width, 0.42 * s.width), (0.12, 0.17), (0.52, 0.52 + 0.48 * s.width), Material((0.015, 0.015, 0.02))
    )
    s.box((-0.1, 0.1), (0.1, 0.25), (0.45, 0.52), Material((0.05, 0.05, 0.05)))
    return name


def chest(s: Spot) -> str:
    name, timber = wood(s.random)
    w, top = s.width / 2, s.random.uniform(0.7, 1.0)
    s.box((-w, w), (0, s.length), (0, top), timber)
    for i in range(3):
        z = (i + 0.5) * top / 3
        s.box((-0.08, 0.08), (s.length, s.length + 0.025), (z - 0.015, z + 0.015), Material((0.1, 0.1, 0.1)))
    s.ball(s.random.uniform(-w / 2, w / 2), s.length / 2, top + 0.12, (0.1, 0.1, 0.12), Material(coloured(s.random)[1]))
    return name


def toy_box(s: Spot) -> str:
    name, colour = coloured(s.random)
    w = s.width / 2
    s.box((-w, w), (0, s.length), (0, 0.4), Material(colour, shade(colour, 1.5), Pattern.CHECKS, 0.2))
    ball = coloured(s.random)[1]
    s.ball(w * 0.5, s.length / 2, 0.52, (0.13, 0.13, 0.13), Material(ball, shade(ball, 0.4), Pattern.STRIPES, 0.1))
    return name


def painting(s: Spot) -> str:
    name, colour = coloured(s.random)
    w, z = s.width / 2, s.random.uniform(1.3, 1.6)
    high = s.random.uniform(0.3, 0.5)
    s.box((-w, w), (0, 0.03), (z - high, z + high), wood(s.random)[1])
    picture = Material(colour, coloured(s.random)[1], Pattern.PICTURE, s.random.uniform(0.25, 0.7))
    s.box((-w + 0.05, w - 0.05), (0.03, 0.035), (z - high + 0.05, z + high - 0.05), picture)
    return name


def rug(s: Spot) -> str:
    name, colour = coloured(s.random)
    pattern = s.random.choice([Pattern.STRIPES, Pattern.CHECKS, Pattern.DOTS, Pattern.PICTURE])
    period = s.random.uniform(0.3, 0.7)
    s.box(
        (-s.width / 2, s.width / 2), (0, s.length), (0, 0.012), Material(colour, coloured(s.random)[1], pattern, period)
    )
    return name


@dataclass(frozen=True)
class Piece:
    """A kind of furniture and the room it takes, in metres."""

    name: str
    make: Callable[[Spot], str]
    width: tuple[float, float]
    length: tuple[float, float]
    place: str = "wall"  # "wall", "middle", or "on wall" and "flat", which are in nobody's way


PIECES: dict[str, Piece] = {
    piece.name: piece
    for piece in (
        Piece("sofa", sofa, (1.6, 2.3), (0.8, 0.95)),
        Piece("armchair", armchair, (0.8, 1.0), (0.8, 0.9)),
        Piece("bed", bed, (1.0, 1.8), (2.0, 2.1)),
        Piece("wardrobe", wardrobe, (1.0, 1.8), (0.55, 0.65)),
        Piece("bookshelf", bookshelf, (0.8, 1.6), (0.28, 0.36)),
        Piece("dining table", table, (1.2, 1.8), (0.8, 0.95), "middle"),
        Piece("coffee table", coffee_table, (0.8, 1.1), (0.5, 0.6), "middle"),
        Piece("chair", chair, (0.42, 0.46), (0.42, 0.46)),
        Piece("desk", desk, (1.1, 1.5), (0.6, 0.75)),
        Piece("kitchen counter", kitchen_counter, (1.6, 2.8), (0.6, 0.65)),
        Piece("fridge", fridge, (0.6, 0.7), (0.6, 0.68)),
        Piece("bathtub", bathtub, (1.5, 1.7), (0.7, 0.8)),
        Piece("washbasin", washbasin, (0.55, 0.7), (0.42, 0.5)),
        Piece("toilet", toilet, (0.42, 0.45), (0.68, 0.7)),
        Piece("plant", plant, (0.5, 0.55), (0.5, 0.55)),
        Piece("floor lamp", floor_lamp, (0.36, 0.4), (0.36, 0.4)),
        Piece("television", television, (1.1, 1.6), (0.38, 0.45)),
        Piece("chest of drawers", chest, (0.7, 1.1), (0.42, 0.5)),
        Piece("toy box", toy_box, (0.6, 0.9), (0.4, 0.5)),
        Piece("painting", painting, (0.5, 1.3), (0.05, 0.05), "on wall"),
        Piece("rug", rug, (1.2, 2.2), (1.0, 1.6), "flat"),
    )
}

FURNISHING: dict[str, tuple[str, ...]] = {
    "living room": (
        "sofa",
        "television",
        "coffee table",
        "bookshelf",
        "armchair",
        "plant",
        "floor lamp",
        "rug",
        "painting",
    ),
    "bedroom": ("bed", "wardrobe", "chest of drawers", "rug", "painting", "floor lamp", "chair"),
    "kitchen": ("kitchen counter", "fridge", "dining table", "chair", "chair", "plant"),
    "dining room": ("dining table", "chair", "chair", "chair", "chest of drawers", "painting", "plant"),
    "bathroom": ("bathtub", "washbasin", "toilet", "plant"),
    "study": ("desk", "chair", "bookshelf", "bookshelf", "armchair", "floor lamp", "painting"),
    "children's room": ("bed", "toy box", "toy box", "desk", "rug", "chest of drawers", "painting"),
    "hallway": ("chest of drawers", "painting", "plant", "painting", "chair"),
}
