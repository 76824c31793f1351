"""A procedural world: solids, materials, light, and where one can walk; built with WorldBuilder."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import torch

from .patterns import Pattern
from .solids import BOX, SolidList, Solids

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """How a surface looks: linear colours, mixed by a pattern whose period is in metres."""

    colour: Colour
    second: Colour | None = None  # a darker shade of the first if not given
    pattern: Pattern = Pattern.PLAIN
    period: float = 1.0
    emission: float = 0.0  # of its own light, in units of the colour


@dataclass(frozen=True)
class Thing:
    """An object with an identity: what solids of its id are part of."""

    name: str  # "sofa"
    look: str  # "dark red"
    room: int


@dataclass(frozen=True)
class Room:
    """A rectangle of floor with a name and one light; the whole court of a courtyard is a room."""

    name: str  # "kitchen"
    low: tuple[float, float]  # metres
    high: tuple[float, float]
    looks: tuple[str, ...]  # "wooden floor", "pale green walls"
    lamp: tuple[float, float, float]  # position
    lamp_colour: Colour  # radiant intensity; black: no lamp


@dataclass(frozen=True)
class World:
    """One world. Everything that rendering needs is tensors, and `to` takes them to a device."""

    seed: int
    kind: str  # "apartment" or "courtyard"
    solids: Solids
    shadow_casters: Solids  # all but what shines
    colours: torch.Tensor  # [M, 2, 3] linear
    patterns: torch.Tensor  # [M] int64
    periods: torch.Tensor  # [M] metres
    emissions: torch.Tensor  # [M]
    room_bounds: torch.Tensor  # [Q, 4] metres: x0, y0, x1, y1
    lamps: torch.Tensor  # [Q, 3] metres
    lamp_colours: torch.Tensor  # [Q, 3]
    ambient: torch.Tensor  # [2, 3]: from below, from above
    sun_direction: torch.Tensor  # [3], towards the sun
    sun_colour: torch.Tensor  # [3]
    sky: torch.Tensor  # [2, 3]: at the horizon, at the zenith
    free: torch.Tensor  # [X, Y] bool: where a head may be
    free_origin: tuple[float, float]  # metres, of the corner of cell (0, 0)
    free_cell: float  # metres
    rooms: tuple[Room, ...]
    things: tuple[Thing, ...]  # number i has object id i + 1; 0 is the building
    doors: dict[int, tuple[int, ...]]  # rooms that doors lead to, by room
    looks: tuple[str, ...]  # of the whole: "sunny", "evening"

    def to(self, device: torch.device | str) -> World:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        movable = {name: x.to(device) for name, x in moved.items() if isinstance(x, (torch.Tensor, Solids))}
        return replace(self, **movable)


@dataclass
class WorldBuilder:
    """What a world is put together with."""

    seed: int
    solids: SolidList = field(default_factory=SolidList)
    materials: list[Material] = field(default_factory=list)
    things: list[Thing] = field(default_factory=list)
    rooms: list[Room] = field(default_factory=list)
    doors: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def material(self, material: Material) -> int:
        if material not in self.materials:
            self.materials.append(material)
        return self.materials.index(material)

    def thing(self, name: str, look: str, room: int) -> int:
        """The id of a new object."""
        self.things.append(Thing(name, look, room))
        return len(self.things)

    def box(
        self,
        low: tuple[float, float, float],
        high: tuple[float, float, float],
        material: Material,
        object_id: int = 0,
    ) -> None:
        """A box by two corners, unless it is flat."""
        if all(h - l > 1e-6 for l, h in zip(low, high)):  # noqa: E741
            centre = tuple((l + h) / 2 for l, h in zip(low, high))  # noqa: E741
            half = tuple((h - l) / 2 for l, h in zip(low, high))  # noqa: E741
            self.solids.add(BOX, centre, half, self.material(material), object_id)

    def _shines(self, row) -> bool:
        return self.materials[row[1][8]].emission > 1

    def build(self, kind: str, free, free_origin, free_cell: float, light: dict, looks: tuple[str, ...]) -> World:
        second = [m.second or tuple(0.75 * c for c in m.colour) for m in self.materials]
        return World(
            seed=self.seed,
            kind=kind,
            solids=self.solids.build(),
            shadow_casters=SolidList([row for row in self.solids.rows if not self._shines(row)]).build(),
            colours=torch.tensor([[m.colour, s] for m, s in zip(self.materials, second, strict=True)]),
            patterns=torch.tensor([int(m.pattern) for m in self.materials]),
            periods=torch.tensor([m.period for m in self.materials]),
            emissions=torch.tensor([m.emission for m in self.materials]),
            room_bounds=torch.tensor([[*room.low, *room.high] for room in self.rooms]),
            lamps=torch.tensor([room.lamp for room in self.rooms]),
            lamp_colours=torch.tensor([room.lamp_colour for room in self.rooms]),
            free=free,
            free_origin=free_origin,
            free_cell=free_cell,
            rooms=tuple(self.rooms),
            things=tuple(self.things),
            doors=self.doors,
            looks=looks,
            **{name: torch.tensor(value) for name, value in light.items()},
        )
