"""Sentences about a procedural world as it is seen from a place: what room it is, what stands there, the light."""

from __future__ import annotations

from random import Random

import torch

from .scene import Room, Thing, World

_OPENINGS = {
    "apartment": ("{room}", "{lit_room}", "inside {room}", "a view of {room}", "a panorama of {lit_room}"),
    "courtyard": ("{room}", "{lit_room}", "standing in {room}", "a 360 degree view of {room}"),
}
_LIGHTS = {
    "sunny": ("sunlit", "bright", "sunny"),
    "overcast": ("softly lit", "bright", "calm"),
    "evening": ("warm", "evening", "golden"),
    "night": ("lamp-lit", "night-time", "dim"),
}


def caption(world: World, position: torch.Tensor, seed: int) -> str:  # position [3] metres
    """A sentence for a place in a world, the same for the same seed; another seed words it otherwise.

    Example:
        >>> from evoworld.data.worlds import make_apartment
        >>> world = make_apartment(0)
        >>> world.rooms[0].name in caption(world, world.lamps[0], seed=0)
        True
    """
    random = Random(f"{world.seed} caption {seed}")
    index = _room_at(world, position)
    room = world.rooms[index]
    light = random.choice(_LIGHTS[world.looks[0]])
    opening = random.choice(_OPENINGS[world.kind])
    text = opening.format(room=_with_article(room.name), lit_room=_with_article(f"{light} {room.name}"))
    details = [_phrase(random, thing) for thing in _sample(random, [t for t in world.things if t.room == index], 4)]
    looks = _sample(random, list(room.looks), 2)
    random.shuffle(details)
    if details:
        text += random.choice((" with ", " that has ", ", ")) + _joined(details)
    if looks:
        text += random.choice((", ", "; ")) + _joined(looks)
    beyond = _room_behind_a_door(random, world, index)
    if beyond and random.random() < 0.5:
        text += random.choice((", next to a {}", "; a door leads to a {}", ", a {} behind it")).format(beyond.name)
    return text


def _room_at(world: World, position: torch.Tensor) -> int:
    x, y = position[:2].tolist()
    inside = [i for i, r in enumerate(world.rooms) if r.low[0] <= x <= r.high[0] and r.low[1] <= y <= r.high[1]]
    return inside[0] if inside else 0


def _room_behind_a_door(random: Random, world: World, index: int) -> Room | None:
    others = [world.rooms[i] for i in world.doors.get(index, ())]
    return random.choice(others) if others else None


def _sample(random: Random, values: list, most: int) -> list:
    return random.sample(values, random.randint(min(1, len(values)), min(most, len(values))))


def _phrase(random: Random, thing: Thing) -> str:
    return _with_article(thing.name if random.random() < 0.2 else f"{thing.look} {thing.name}")


def _with_article(text: str) -> str:
    return ("an " if text[0] in "aeiou" else "a ") + text


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
