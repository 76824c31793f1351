"""Courtyards and gardens under a sky: houses around a square, trees, benches, a fountain, lamps."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from .free_space import FreeSpace
from .light import daylight
from .palette import WALLS, coloured, shade, wood
from .patterns import Pattern
from .scene import Colour, Material, Room, Thing, World, WorldBuilder
from .solids import BOX, CYLINDER, ELLIPSOID

_GRASS: Colour = (0.08, 0.22, 0.04)


def make_courtyard(seed: int) -> World:
    """The courtyard of a seed."""
    random = Random(f"courtyard {seed}")
    builder = WorldBuilder(seed)
    width, depth = random.uniform(9, 20), random.uniform(9, 20)
    light, looks, is_dark = daylight(random, indoors=False)
    ground_look = _build_ground(builder, random, width, depth)
    facades = [_build_house(builder, random, side, width, depth) for side in ("west", "east", "south", "north")]
    free = FreeSpace.over((-1.0, -1.0), (width + 1.0, depth + 1.0))
    free.open((0.3, 0.3, width - 0.3, depth - 0.3))
    name = random.choice(["courtyard", "square"]) if "grass" not in ground_look else "garden"
    looks_of_room = (ground_look, *sorted({look for look in facades if look}))
    lamp = (random.uniform(0.3, 0.7) * width, random.uniform(0.3, 0.7) * depth, 3.4)
    brightness = 14.0 if is_dark else 0.0
    builder.rooms.append(
        Room(name, (0.0, 0.0), (width, depth), looks_of_room, lamp, tuple(brightness * c for c in (1, 0.8, 0.55)))
    )
    builder.doors[0] = ()
    taken = [(lamp[0], lamp[1], 0.4)]
    _lamp_post(builder, random, lamp[0], lamp[1], builder.thing("street lamp", "black", 0))
    free.close((lamp[0] - 0.15, lamp[1] - 0.15, lamp[0] + 0.15, lamp[1] + 0.15))
    for what in random.choices(list(_THINGS), k=random.randint(5, 14)):
        make, reach = _THINGS[what]
        for _ in range(12):
            x, y = random.uniform(reach, width - reach), random.uniform(reach, depth - reach)
            if any(abs(x - u) < reach + r and abs(y - v) < reach + r for u, v, r in taken):
                continue
            number = builder.thing(what, "", 0)
            builder.things[-1] = Thing(what, make(builder, random, x, y, number), 0)
            taken.append((x, y, reach + 0.3))
            free.close((x - reach, y - reach, x + reach, y + reach))
            break
    return builder.build("courtyard", *free.finish(), light, looks)


def _build_ground(builder: WorldBuilder, random: Random, width: float, depth: float) -> str:
    look, material = random.choice(
        [
            ("grass", Material(_GRASS, shade(_GRASS, 0.5), Pattern.SPECKLES, 0.5)),
            (
                "grey paving stones",
                Material((0.4, 0.39, 0.37), (0.18, 0.18, 0.17), Pattern.TILES, random.uniform(0.5, 1)),
            ),
            ("a brick pavement", Material((0.42, 0.18, 0.1), (0.3, 0.28, 0.25), Pattern.BRICKS, 0.6)),
            (
                "a chequered pavement",
                Material((0.6, 0.56, 0.48), (0.25, 0.22, 0.2), Pattern.CHECKS, random.uniform(1, 2)),
            ),
            ("sand", Material((0.6, 0.48, 0.3), (0.5, 0.38, 0.22), Pattern.SPECKLES, 0.6)),
        ]
    )
    builder.box((-120, -120, -1), (120, 120, -0.02), Material((0.3, 0.29, 0.27), None, Pattern.SPECKLES, 1.0))
    builder.box((0, 0, -0.5), (width, depth, 0), material)
    return look


def _build_house(builder: WorldBuilder, random: Random, side: str, width: float, depth: float) -> str:
    """A house along a side, with rows of windows and a door; or a hedge. What one would call it."""
    length = width if side in ("south", "north") else depth

    def box(start, end, near, far, bottom, top, material) -> None:
        """From start to end along the side, from near to far outwards."""
        if side == "west":
            low, high = (-far, start), (-near, end)
        elif side == "east":
            low, high = (width + near, start), (width + far, end)
        elif side == "south":
            low, high = (start, -far), (end, -near)
        else:
            low, high = (start, depth + near), (end, depth + far)
        builder.box((*low, bottom), (*high, top), material)

    if random.random() < 0.18:
        hedge = Material((0.04, 0.15, 0.03), (0.01, 0.05, 0.01), Pattern.SPECKLES, 0.4)
        box(0, length, 0, 0.6, 0, random.uniform(1.2, 2.0), hedge)
        return "a hedge"
    name = random.choice(list(WALLS))
    colour = shade(WALLS[name], random.uniform(0.8, 1.1))
    brick = random.random() < 0.3
    facade = Material(colour, shade(colour, 0.55), Pattern.BRICKS if brick else Pattern.PLAIN, 0.5 if brick else 2.0)
    storeys, height = random.randint(1, 4), random.uniform(2.8, 3.4)
    box(-3, length + 3, 0.1, 6, 0, storeys * height + 0.4, facade)
    roof = Material(coloured(random, ["red", "dark red", "grey", "brown"])[1])
    box(-3.2, length + 3.2, -0.2, 6, storeys * height + 0.4, storeys * height + 0.7, roof)
    glass = Material((0.06, 0.08, 0.11), emission=random.choice([0.0, 0.0, 3.0]))
    frame = Material(random.choice([(0.75, 0.75, 0.72), (0.2, 0.1, 0.05), (0.1, 0.25, 0.15)]))
    wide, spacing = random.uniform(0.9, 1.4), random.uniform(2.0, 3.2)
    door_at = random.uniform(1, length - 2)
    count = int((length - 0.6) / spacing)
    for storey in range(storeys):
        for i in range(count):
            middle = (i + 0.5) * length / count
            if storey == 0 and abs(middle - door_at - 0.5) < 1.3:
                continue
            bottom = storey * height + 0.95
            box(middle - wide / 2 - 0.08, middle + wide / 2 + 0.08, 0.04, 0.1, bottom - 0.08, bottom + 1.48, frame)
            box(middle - wide / 2, middle + wide / 2, 0.03, 0.1, bottom, bottom + 1.4, glass)
    door_name, door = coloured(random)
    box(door_at, door_at + 1.1, 0.02, 0.1, 0, 2.2, Material(door))
    return f"{'brick' if brick else name} houses" if storeys > 1 else f"a low house with a {door_name} door"


def _tree(builder: WorldBuilder, random: Random, x: float, y: float, number: int) -> str:
    trunk = builder.material(Material((0.14, 0.08, 0.04), None, Pattern.SPECKLES, 0.2))
    look, green = random.choice(
        [
            ("green", (0.06, 0.22, 0.03)),
            ("dark green", (0.02, 0.1, 0.03)),
            ("golden", (0.5, 0.28, 0.03)),
            ("flowering", (0.65, 0.35, 0.42)),
        ]
    )
    leaves = builder.material(Material(green, shade(green, 0.3), Pattern.SPECKLES, 0.6))
    size = random.uniform(0.9, 1.8)
    high = random.uniform(1.8, 2.5) + 0.4 * size  # the crown is above one's head
    builder.solids.add(CYLINDER, (x, y, high / 2), (0.13, 0.13, high / 2), trunk, number)
    builder.solids.add(ELLIPSOID, (x, y, high + size * 0.7), (size, size, 1.1 * size), leaves, number)
    builder.solids.add(
        ELLIPSOID, (x + 0.4 * size, y - 0.3 * size, high + 0.3 * size), (0.7 * size,) * 3, leaves, number
    )
    return look


def _bush(builder: WorldBuilder, random: Random, x: float, y: float, number: int) -> str:
    look, colour = random.choice(
        [("round", (0.05, 0.2, 0.04)), ("red", (0.35, 0.05, 0.05)), ("yellow", (0.6, 0.45, 0.06))]
    )
    size = random.uniform(0.4, 0.65)
    leaves = builder.material(Material(colour, shade(colour, 0.35), Pattern.SPECKLES, 0.25))
    builder.solids.add(ELLIPSOID, (x, y, 0.7 * size), (size, size, size), leaves, number)
    return look


def _bench(builder: WorldBuilder, random: Random, x: float, y: float, number: int) -> str:
    name, material = wood(random)
    turned = random.random() < 0.5
    for across, out, z, half in (
        (0, 0, 0.44, (0.75, 0.22, 0.03)),
        (0, -0.22, 0.7, (0.75, 0.03, 0.2)),
        (-0.6, 0, 0.2, (0.04, 0.2, 0.2)),
        (0.6, 0, 0.2, (0.04, 0.2, 0.2)),
    ):
        place, size = ((out, across), (half[1], half[0], half[2])) if turned else ((across, out), half)
        builder.solids.add(BOX, (x + place[0], y + place[1], z), size, builder.material(material), number)
    return name


def _fountain(builder: WorldBuilder, random: Random, x: float, y: float, number: int) -> str:
    stone = builder.material(Material((0.45, 0.43, 0.4), None, Pattern.SPECKLES, 0.4))
    water = builder.material(Material((0.1, 0.3, 0.4), (0.25, 0.5, 0.6), Pattern.SPECKLES, 0.4))
    builder.solids.add(CYLINDER, (x, y, 0.22), (1.2, 1.2, 0.22), stone, number)
    builder.solids.add(CYLINDER, (x, y, 0.23), (1.05, 1.05, 0.23), water, number)
    builder.solids.add(CYLINDER, (x, y, 0.6), (0.14, 0.14, 0.6), stone, number)
    builder.solids.add(CYLINDER, (x, y, 1.25), (0.5, 0.5, 0.06), stone, number)
    builder.solids.add(ELLIPSOID, (x, y, 1.35), (0.2, 0.2, 0.25), water, number)
    return "stone"


def _flower_bed(builder: WorldBuilder, random: Random, x: float, y: float, number: int) -> str:
    name, colour = coloured(random, ["red", "yellow", "pink", "purple", "blue", "orange", "white"])
    builder.box((x - 0.7, y - 0.5, 0), (x + 0.7, y + 0.5, 0.25), wood(random)[1], number)
    flowers = Material(colour, (0.04, 0.16, 0.03), Pattern.SPECKLES, 0.25)
    builder.box((x - 0.65, y - 0.45, 0.25), (x + 0.65, y + 0.45, 0.42), flowers, number)
    return name


def _statue(builder: WorldBuilder, random: Random, x: float, y: float, number: int) -> str:
    look, colour = random.choice(
        [("marble", (0.75, 0.74, 0.7)), ("bronze", (0.2, 0.16, 0.08)), ("golden", (0.7, 0.45, 0.1))]
    )
    material = builder.material(Material(colour))
    stone = builder.material(Material((0.4, 0.39, 0.37), None, Pattern.SPECKLES, 0.3))
    builder.solids.add(BOX, (x, y, 0.4), (0.4, 0.4, 0.4), stone, number)
    builder.solids.add(ELLIPSOID, (x, y, 1.25), (0.22, 0.18, 0.5), material, number)
    builder.solids.add(ELLIPSOID, (x, y, 1.85), (0.13, 0.13, 0.17), material, number)
    return look


def _lamp_post(builder: WorldBuilder, random: Random, x: float, y: float, number: int) -> str:
    black = builder.material(Material((0.03, 0.03, 0.03)))
    glow = builder.material(Material((0.9, 0.75, 0.5), emission=1.5))
    builder.solids.add(CYLINDER, (x, y, 1.6), (0.05, 0.05, 1.6), black, number)
    builder.solids.add(ELLIPSOID, (x, y, 3.3), (0.18, 0.18, 0.2), glow, number)
    return "black"


# What stands around: how it is made, and half the width of its place in metres.
_THINGS: dict[str, tuple[Callable[[WorldBuilder, Random, float, float, int], str], float]] = {
    "tree": (_tree, 0.5),
    "bush": (_bush, 0.65),
    "bench": (_bench, 0.8),
    "fountain": (_fountain, 1.25),
    "flower bed": (_flower_bed, 0.75),
    "statue": (_statue, 0.45),
}
