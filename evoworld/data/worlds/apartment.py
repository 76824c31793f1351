"""Apartments: rooms of different use with doors and windows, furnished and lit."""

from __future__ import annotations

from random import Random

from . import palette
from .floor_plan import SIDES, WALL, Opening, Plan, add_windows, cut_into_rooms
from .free_space import FreeSpace
from .furniture import FURNISHING, PIECES, Piece, Spot
from .light import daylight
from .patterns import Pattern
from .scene import Material, Room, Thing, World, WorldBuilder
from .solids import ELLIPSOID

_FRAME = 0.05  # metres, of doors and windows
_GROUND = -3.0  # metres: the apartment is on the first floor
_DOOR_SPACE = 0.9  # metres in front of a door that stay empty
_WET = ("bathroom", "kitchen")

Rectangle = tuple[float, float, float, float]  # x0, y0, x1, y1


def make_apartment(seed: int) -> World:
    """The apartment of a seed."""
    random = Random(f"apartment {seed}")
    builder = WorldBuilder(seed)
    width, depth, height = random.uniform(6.5, 13), random.uniform(5, 9.5), random.uniform(2.4, 3.1)
    plans = cut_into_rooms(random, width, depth, random.choice([2, 3, 4, 4, 5, 6, 7]))
    add_windows(random, plans, width, depth, height)
    names = _names(random, plans)
    light, looks, is_dark = daylight(random, indoors=True)
    free = FreeSpace.over((-0.5, -0.5), (width + 0.5, depth + 0.5))
    for index, (plan, name) in enumerate(zip(plans, names, strict=True)):
        _build_room(builder, random, index, plan, name, height, is_dark, free)
        builder.doors[index] = tuple(sorted(plan.neighbours))
    _build_outside(builder, random, width, depth)
    return builder.build("apartment", *free.finish(), light, looks)


def _names(random: Random, plans: list[Plan]) -> list[str]:
    """What the rooms are for: long ones are hallways, the smallest a bathroom, the largest a living room."""
    names = [""] * len(plans)
    by_size = sorted(range(len(plans)), key=lambda i: plans[i].area)
    rest = ["kitchen", "bedroom", "study", "dining room", "children's room", "bedroom", "study"]
    random.shuffle(rest)
    usual = ["living room", *sorted(rest[:2], key=lambda n: n != "kitchen"), *rest[2:]]
    for index in reversed(by_size):
        names[index] = "hallway" if plans[index].is_long else usual.pop(0)
    if len(plans) > 3 and names[by_size[0]] != "hallway":
        names[by_size[0]] = "bathroom"
    return names


def _build_room(builder, random: Random, index: int, plan: Plan, name: str, height: float, is_dark: bool, free) -> None:
    wet = name in _WET
    floor_look, floor = palette.floor(random, wet)
    wall_look, wall = palette.wall(random, wet)
    ceiling = Material(palette.shade((0.78, 0.78, 0.76), random.uniform(0.85, 1.1)))
    builder.box((plan.x0, plan.y0, -0.1), (plan.x1, plan.y1, 0.0), floor)
    builder.box((plan.x0, plan.y0, height), (plan.x1, plan.y1, height + 0.1), ceiling)
    frame = Material(random.choice([(0.75, 0.75, 0.72), (0.3, 0.17, 0.08), (0.06, 0.06, 0.07)]))
    for side in SIDES:
        _build_wall(builder, plan, side, height, wall, frame)
    x, y = (plan.x0 + plan.x1) / 2, (plan.y0 + plan.y1) / 2
    brightness = (1.0 if is_dark else 0.45) * random.uniform(0.7, 1.3) * (0.35 + 0.16 * plan.area) * (height / 2.7) ** 2
    warm = random.choice([(1.0, 0.82, 0.6), (1.0, 0.92, 0.82), (0.95, 0.97, 1.0)])
    lamp_shade = Material((0.9, 0.85, 0.75), emission=1.5)
    lamp = (x, y, height - 0.16)
    builder.solids.add(ELLIPSOID, (x, y, height - 0.07), (0.2, 0.2, 0.07), builder.material(lamp_shade), 0)
    looks = (floor_look, wall_look)
    if any(not opening.is_door for side in SIDES for opening in plan.openings[side]):
        looks += (random.choice(["a window", "a large window"]),)
    builder.rooms.append(
        Room(name, (plan.x0, plan.y0), (plan.x1, plan.y1), looks, lamp, tuple(brightness * c for c in warm))
    )
    free.open((plan.x0 + WALL, plan.y0 + WALL, plan.x1 - WALL, plan.y1 - WALL))
    for side in SIDES:
        for opening in plan.openings[side]:
            if opening.is_door:
                free.open(_along(plan, side, opening.start, opening.end, -WALL, WALL))
    _furnish(builder, random, index, plan, name, free)


def _along(plan: Plan, side: str, start: float, end: float, near: float, far: float) -> Rectangle:
    """The rectangle from start to end along a side, from near to far inwards of it."""
    at = plan.side(side)[0]
    inward = 1 if side in ("west", "south") else -1
    low, high = sorted((at + inward * near, at + inward * far))
    return (low, start, high, end) if side in ("west", "east") else (start, low, end, high)


def _build_wall(builder: WorldBuilder, plan: Plan, side: str, height: float, wall: Material, frame: Material) -> None:
    """The room's layer of a wall, in pieces around its openings, with a frame in each opening."""
    _, start, end = plan.side(side)

    def piece(s: float, e: float, bottom: float, top: float, material: Material, depth: float = WALL) -> None:
        x0, y0, x1, y1 = _along(plan, side, s, e, 0.0, depth)
        builder.box((x0, y0, bottom), (x1, y1, top), material)

    at = start
    for opening in sorted(_without_overlap(plan.openings[side]), key=lambda o: o.start):
        piece(at, opening.start, 0.0, height, wall)
        piece(opening.start, opening.end, 0.0, opening.bottom, wall)
        piece(opening.start, opening.end, opening.top, height, wall)
        for s in (opening.start, opening.end - _FRAME):
            piece(s, s + _FRAME, opening.bottom, opening.top, frame, WALL + 0.02)
        piece(opening.start, opening.end, opening.top - _FRAME, opening.top, frame, WALL + 0.02)
        if not opening.is_door:
            piece(opening.start, opening.end, opening.bottom, opening.bottom + _FRAME, frame, WALL + 0.05)
            middle = (opening.start + opening.end) / 2
            piece(middle - 0.02, middle + 0.02, opening.bottom, opening.top, frame)
        at = opening.end
    piece(at, end, 0.0, height, wall)


def _without_overlap(openings: list[Opening]) -> list[Opening]:
    kept: list[Opening] = []
    for opening in openings:
        if all(opening.end < other.start or opening.start > other.end for other in kept):
            kept.append(opening)
    return kept


def _furnish(builder: WorldBuilder, random: Random, index: int, plan: Plan, name: str, free) -> None:
    """Stands furniture along walls and in the middle, clear of doors; what finds no place is left out."""
    taken: list[Rectangle] = []
    for side in SIDES:
        for opening in plan.openings[side]:
            reach = _DOOR_SPACE if opening.is_door else 0.0
            taken.append(_along(plan, side, opening.start - 0.1, opening.end + 0.1, 0.0, reach))
    wanted = list(FURNISHING[name])
    essential, rest = wanted[:2], wanted[2:]
    random.shuffle(rest)
    for what in essential + rest[: random.randint((len(rest) + 1) // 2, len(rest))]:
        piece = PIECES[what]
        for _ in range(12):
            spot, footprint = _try_spot(builder, random, plan, piece)
            blocks = piece.place in ("wall", "middle")
            if spot is None or (piece.place != "flat" and any(_overlap(footprint, other) for other in taken)):
                continue
            spot.object_id = builder.thing(piece.name, "", index)
            look = piece.make(spot)
            builder.things[-1] = Thing(piece.name, look, index)
            if piece.place != "flat":
                taken.append(footprint)
            if blocks:
                free.close(footprint)
            break


def _try_spot(builder: WorldBuilder, random: Random, plan: Plan, piece: Piece) -> tuple[Spot | None, Rectangle]:
    width, length = random.uniform(*piece.width), random.uniform(*piece.length)
    side = random.choice(SIDES)
    _, start, end = plan.side(side)
    space = (plan.x1 - plan.x0) if side in ("west", "east") else (plan.y1 - plan.y0)
    if end - start < width + 0.3 or space < length + 0.9:
        return None, (0, 0, 0, 0)
    middle = random.uniform(start + width / 2 + 0.12, end - width / 2 - 0.12)
    back = WALL + (0.02 if piece.place == "wall" else 0.001)
    if piece.place in ("middle", "flat"):
        back = random.uniform(0.3, 0.7) * space - length / 2
    x0, y0, x1, y1 = footprint = _along(plan, side, middle - width / 2, middle + width / 2, back, back + length)
    along, outward = {
        "west": ((0, 1), (1, 0)),
        "east": ((0, -1), (-1, 0)),
        "south": ((-1, 0), (0, 1)),
        "north": ((1, 0), (0, -1)),
    }[side]
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    spot = Spot(
        builder, random, x - outward[0] * length / 2, y - outward[1] * length / 2, along, outward, width, length
    )
    margin = 0.05
    return spot, (footprint[0] - margin, footprint[1] - margin, footprint[2] + margin, footprint[3] + margin)


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _build_outside(builder: WorldBuilder, random: Random, width: float, depth: float) -> None:
    """What windows look out on: a lawn or pavement, some houses and trees."""
    ground = random.choice([(0.09, 0.2, 0.05), (0.3, 0.29, 0.27), (0.35, 0.28, 0.18)])
    builder.box((-150, -150, _GROUND - 1), (150, 150, _GROUND), Material(ground, None, Pattern.SPECKLES, 1.5))
    for _ in range(random.randint(3, 7)):
        x, y = _outside(random, width, depth, random.uniform(14, 40))
        a, b, top = random.uniform(4, 9), random.uniform(4, 9), random.uniform(2, 14)
        colour = palette.coloured(random, ["white", "beige", "red", "orange", "grey", "pink"])[1]
        material = Material(colour, palette.shade(colour, 0.3), random.choice([Pattern.TILES, Pattern.BRICKS]), 2.5)
        builder.box((x - a, y - b, _GROUND), (x + a, y + b, top), material)
    for _ in range(random.randint(2, 6)):
        x, y = _outside(random, width, depth, random.uniform(5, 10))
        green = (0.05, random.uniform(0.12, 0.25), 0.03)
        leaves = builder.material(Material(green, palette.shade(green, 0.3), Pattern.SPECKLES, 0.8))
        size = random.uniform(1.2, 2.2)
        builder.solids.add(ELLIPSOID, (x, y, random.uniform(-0.5, 1.5)), (size, size, 1.3 * size), leaves, 0)


def _outside(random: Random, width: float, depth: float, distance: float) -> tuple[float, float]:
    side = random.choice(SIDES)
    along = random.uniform(-0.3, 1.3)
    return {
        "west": (-distance, along * depth),
        "east": (width + distance, along * depth),
        "south": (along * width, -distance),
        "north": (along * width, depth + distance),
    }[side]
