import pytest
import torch

from evoworld.data.worlds import VERSION, WALKS, caption, make_apartment, make_courtyard, make_walk

WORLDS = [make_apartment(seed) for seed in range(8)] + [make_courtyard(seed) for seed in range(8)]


@pytest.mark.parametrize("make", [make_apartment, make_courtyard])
def test_a_seed_gives_one_world_and_another_seed_another(make):
    first, again, other = make(5), make(5), make(6)
    assert first.solids.centre.equal(again.solids.centre) and first.colours.equal(again.colours)
    assert first.free.equal(again.free) and first.things == again.things and first.rooms == again.rooms
    assert first.rooms != other.rooms and first.looks and other.looks


def test_worlds_change_only_with_their_version():
    """Walks that were kept on disk are known by the version: whoever changes a world changes both numbers."""
    numbers = [x.double().abs().sum() for w in WORLDS for x in (w.solids.centre, w.solids.half_size, w.colours, w.free)]
    walks = [make_walk(w, kind, 8, 0).double().abs().sum() for w in WORLDS[::4] for kind in WALKS]
    words = "".join(caption(w, w.lamps[0], 0) for w in WORLDS)
    assert (VERSION, round(sum(numbers).item()), round(sum(walks).item()), len(words)) == (3, 174185, 2745, 1623)


def test_there_is_room_to_walk():
    for world in WORLDS:
        assert world.free.sum() * world.free_cell**2 > 2  # square metres


def test_apartments_have_rooms_with_doors_furniture_and_lamps():
    for world in WORLDS[:8]:
        assert world.kind == "apartment" and len(world.rooms) >= 2
        assert all(world.doors[i] for i in range(len(world.rooms)))
        assert {thing.room for thing in world.things} == set(range(len(world.rooms)))
        assert (world.lamp_colours.sum(-1) > 0).all()
        inside = (world.lamps[:, :2] > world.room_bounds[:, :2]) & (world.lamps[:, :2] < world.room_bounds[:, 2:])
        assert inside.all()
    assert len({room.name for world in WORLDS[:8] for room in world.rooms}) >= 6


def test_every_object_has_solids_and_every_solid_a_material():
    for world in WORLDS:
        ids = set(world.solids.object_id.tolist())
        assert ids == set(range(len(world.things) + 1))
        assert world.solids.material.max() < len(world.colours)
        assert (world.solids.half_size > 0).all()


def test_captions_name_the_room_and_what_stands_in_it():
    for world in WORLDS:
        for index, room in enumerate(world.rooms):
            middle = [(low + high) / 2 for low, high in zip(room.low, room.high, strict=True)]
            text = caption(world, torch.tensor([*middle, 1.5]), seed=1)
            assert room.name in text
            here = [thing.name for thing in world.things if thing.room == index]
            assert any(name in text for name in here)
            for word, following in zip(text.split(), text.split()[1:], strict=False):
                if word in ("a", "an"):
                    assert (word == "an") == (following[0] in "aeiou")


def test_captions_are_worded_in_many_ways():
    world = WORLDS[0]
    texts = [caption(world, world.lamps[0], seed) for seed in range(20)]
    assert len(set(texts)) > 15 and texts[3] == caption(world, world.lamps[0], 3)
