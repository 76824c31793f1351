"""The frontier: unseen places beside what was seen, that cameras will look at."""

import itertools

import torch

from evoworld.geometry import Panorama
from evoworld.world.feature_memory import FeatureMemory
from evoworld.world.frontier import dilated, frontier

CAMERA = Panorama(16, 32)
EYE = torch.eye(4)[None]
SOLID = 5.0  # logit of density


def wall_at(z, size=2):
    """A memory of bricks of 0.4 m that are all solid: a square across the z axis, 2 x size bricks wide."""
    side = torch.arange(-size, size)
    bricks = torch.cartesian_prod(side, side, torch.tensor([z])).int()
    memory = FeatureMemory(0.1, 3)
    rows = memory.rows(bricks)
    memory.write(rows, torch.full((len(rows), 3), SOLID), torch.full((len(rows),), 100.0))
    return memory


def as_set(bricks):
    return set(map(tuple, bricks.tolist()))


def test_dilated_bricks():
    bricks = torch.tensor([[0, 0, 0], [-7, 3, 1], [-6, 3, 1]], dtype=torch.int32)
    expected = {
        tuple(b + s for b, s in zip(brick, step))
        for brick in bricks.tolist()
        for step in itertools.product(range(-2, 3), repeat=3)
    }
    found = dilated(bricks, 2)
    assert as_set(found) == expected and len(found) == len(expected)
    assert found.tolist() == sorted(found.tolist())


def test_it_lies_around_a_wall_but_not_behind_it():
    memory = wall_at(z=4)
    found = as_set(frontier(memory, EYE, CAMERA, reach=1, radius=6.0))
    observed = as_set(memory.grid.brick_coordinates)
    assert found and not found & observed
    assert all(max(abs(b + 0.5) for b in brick[:2]) <= 3 and abs(brick[2] - 4) <= 1 for brick in found)
    assert (0, 0, 3) in found and (2, 0, 4) in found  # before it, beside it
    assert (0, 0, 6) not in as_set(frontier(memory, EYE, CAMERA, reach=2, radius=6.0))  # behind it
    other_side = torch.eye(4)
    other_side[2, 3] = 4.0
    both = torch.stack((EYE[0], other_side))
    assert (0, 0, 6) in as_set(frontier(memory, both, CAMERA, reach=2, radius=6.0))


def test_what_was_looked_through_is_no_new_space():
    memory = wall_at(z=4)
    before = as_set(frontier(memory, EYE, CAMERA, reach=1, radius=6.0))
    memory.passed.merge(torch.tensor([[0.2, 0.2, 1.4]]))
    assert before - as_set(frontier(memory, EYE, CAMERA, reach=1, radius=6.0)) == {(0, 0, 3)}


def test_the_radius_and_an_empty_memory():
    memory = wall_at(z=4)
    near = frontier(memory, EYE, CAMERA, reach=1, radius=1.6)
    assert 0 < len(near) < len(frontier(memory, EYE, CAMERA, reach=1, radius=6.0))
    assert (((near + 0.5) * 0.4).norm(dim=-1) < 1.6).all()
    assert len(frontier(memory, EYE, CAMERA, reach=1, radius=0.3)) == 0
    assert frontier(FeatureMemory(0.1, 3), EYE, CAMERA, reach=1, radius=6.0).shape == (0, 3)
