"""Walks found by where they lead, without rendering them."""

from types import SimpleNamespace

import pytest
import torch

from evoworld.data.procedural import ProceduralWalks
from evoworld.data.worlds import Room, make_courtyard
from evoworld.evaluation.held_out import first_frame, leads_elsewhere, path_of, walks_into_new_rooms


def room(low, high):
    return Room("room", low, high, (), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))


def path(*places):
    poses = torch.eye(4).repeat(len(places), 1, 1)
    poses[:, :2, 3] = torch.tensor(places)
    return poses


def test_the_last_frames_are_all_elsewhere():
    world = SimpleNamespace(rooms=(room((0.0, 0.0), (2.0, 2.0)), room((2.1, 0.0), (4.0, 2.0))))
    assert leads_elsewhere(world, path((1, 1), (1.5, 1), (3, 1), (3.5, 1)), 2)
    assert not leads_elsewhere(world, path((1, 1), (1.5, 1), (3, 1), (3.5, 1)), 3)
    assert not leads_elsewhere(world, path((1, 1), (3, 1), (3, 1), (1.9, 1)), 2), "it comes back"
    assert not leads_elsewhere(world, path((1, 1), (3, 1), (2.05, 1)), 1), "in the wall is no room"


def test_paths_and_first_frames_are_those_of_the_walks():
    walks = ProceduralWalks("test", 8, 5, 3, kinds=("loop",))
    whole, first = walks[2], first_frame(walks, 2)
    assert torch.equal(path_of(walks, 2), whole.camera_to_world)
    assert torch.equal(first.image, whole.image[:1]) and torch.equal(first.depth, whole.depth[:1])
    assert first.captions == whole.captions[:1] and torch.equal(first.camera_to_world, whole.camera_to_world[:1])


def test_walks_that_are_found_lead_into_new_rooms():
    walks = ProceduralWalks("test", 8, 24, 12, kinds=("curve",))
    found = walks_into_new_rooms(walks, 2, 4)
    assert len(set(found)) == 2
    for index in found:
        assert walks.world(index).kind == "apartment" and leads_elsewhere(walks.world(index), path_of(walks, index), 4)


def test_too_few_are_told(monkeypatch):
    walks = ProceduralWalks("test", 8, 8, 2)
    monkeypatch.setattr(walks, "world", lambda index: make_courtyard(index))
    with pytest.raises(ValueError, match="found 0 among 2"):
        walks_into_new_rooms(walks, 1, 2)
