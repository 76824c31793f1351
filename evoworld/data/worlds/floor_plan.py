"""Floor plans: a rectangle cut into rooms, doors so that every room can be reached, windows to the outside."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

WALL = 0.06  # metres that a room's own layer of wall is thick; between two rooms stand two layers
SIDES = ("west", "east", "south", "north")
_SHORTEST = 2.3  # metres, of a room's side
_DOOR_MARGIN = 0.25  # metres between a door and the corner of a room
_DOOR_WIDTHS = (0.9, 1.6)
_MORE_DOORS = 0.35  # of walls that no tree of doors needs


@dataclass(frozen=True)
class Opening:
    """A hole in a wall: from start to end along it, from bottom to top."""

    start: float
    end: float
    bottom: float
    top: float
    is_door: bool


@dataclass
class Plan:
    """A rectangle of floor and the holes in its walls, by side."""

    x0: float
    y0: float
    x1: float
    y1: float
    openings: dict[str, list[Opening]] = field(default_factory=lambda: {side: [] for side in SIDES})
    neighbours: set[int] = field(default_factory=set)  # rooms behind its doors

    @property
    def area(self) -> float:
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    @property
    def is_long(self) -> bool:
        a, b = self.x1 - self.x0, self.y1 - self.y0
        return max(a, b) > 2.4 * min(a, b)

    def side(self, name: str) -> tuple[float, float, float]:
        """(where the side lies, its start, its end)."""
        return {
            "west": (self.x0, self.y0, self.y1),
            "east": (self.x1, self.y0, self.y1),
            "south": (self.y0, self.x0, self.x1),
            "north": (self.y1, self.x0, self.x1),
        }[name]


def cut_into_rooms(random: Random, width: float, depth: float, count: int) -> list[Plan]:
    """Cuts a rectangle into up to `count` rooms; long flats get a corridor first."""
    rooms = [Plan(0.0, 0.0, width, depth)]
    if width > 9 and depth > 6.5 and count >= 4 and random.random() < 0.6:
        corridor = random.uniform(1.3, 1.8)
        at = random.uniform(_SHORTEST + 0.3, depth - _SHORTEST - corridor - 0.3)
        rooms = [Plan(0, 0, width, at), Plan(0, at, width, at + corridor), Plan(0, at + corridor, width, depth)]
    while len(rooms) < count:
        can_be_cut = [room for room in rooms if max(room.x1 - room.x0, room.y1 - room.y0) > 2 * _SHORTEST + 0.2]
        can_be_cut = [room for room in can_be_cut if min(room.x1 - room.x0, room.y1 - room.y0) >= _SHORTEST]
        if not can_be_cut:
            break
        room = max(can_be_cut, key=lambda r: r.area * random.uniform(0.6, 1.0))
        rooms.remove(room)
        rooms += _halves(random, room)
    _add_doors(random, rooms)
    return rooms


def _halves(random: Random, room: Plan) -> list[Plan]:
    a, b = room.x1 - room.x0, room.y1 - room.y0
    share = random.uniform(0.38, 0.62)
    if a > b:
        at = room.x0 + min(max(share * a, _SHORTEST), a - _SHORTEST)
        return [Plan(room.x0, room.y0, at, room.y1), Plan(at, room.y0, room.x1, room.y1)]
    at = room.y0 + min(max(share * b, _SHORTEST), b - _SHORTEST)
    return [Plan(room.x0, room.y0, room.x1, at), Plan(room.x0, at, room.x1, room.y1)]


def _shared_walls(rooms: list[Plan]):
    """(room, its side, other room, its side, start, end) of every wall with space for a door."""
    for i, first in enumerate(rooms):
        for j, second in enumerate(rooms):
            for side, facing in (("east", "west"), ("north", "south")):
                at, *here = first.side(side)
                other, *there = second.side(facing)
                start, end = max(here[0], there[0]), min(here[1], there[1])
                if i != j and abs(at - other) < 1e-6 and end - start > _DOOR_WIDTHS[0] + 2 * _DOOR_MARGIN:
                    yield i, side, j, facing, start + _DOOR_MARGIN, end - _DOOR_MARGIN


def _add_doors(random: Random, rooms: list[Plan]) -> None:
    """A tree of doors that joins all rooms, and some more."""
    group = list(range(len(rooms)))
    walls = list(_shared_walls(rooms))
    random.shuffle(walls)
    for i, side, j, facing, start, end in walls:
        if group[i] == group[j] and random.random() > _MORE_DOORS:
            continue
        width = min(random.uniform(*_DOOR_WIDTHS), end - start)
        at = random.uniform(start, end - width)
        door = Opening(at, at + width, 0.0, random.uniform(2.0, 2.2), True)
        rooms[i].openings[side].append(door)
        rooms[j].openings[facing].append(door)
        rooms[i].neighbours.add(j)
        rooms[j].neighbours.add(i)
        group = [group[i] if g == group[j] else g for g in group]


def add_windows(random: Random, rooms: list[Plan], width: float, depth: float, height: float) -> None:
    """Windows in outer walls."""
    outer = {"west": 0.0, "east": width, "south": 0.0, "north": depth}
    for room in rooms:
        for side, boundary in outer.items():
            at, start, end = room.side(side)
            if abs(at - boundary) > 1e-6 or end - start < 1.6 or random.random() < 0.25:
                continue
            wide = random.uniform(0.8, min(2.6, end - start - 0.6))
            first = random.uniform(start + 0.3, end - 0.3 - wide)
            bottom = random.choice([0.05, 0.5, 0.8, 0.9])
            top = min(height - 0.25, random.uniform(1.9, 2.3))
            room.openings[side].append(Opening(first, first + wide, bottom, top, False))
