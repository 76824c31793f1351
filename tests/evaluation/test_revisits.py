"""Coming back to places of a generated world."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_world import HEIGHT, box_walk, tiny_model

from evoworld.evaluation.equivariance import roll_error, turned_likeness
from evoworld.evaluation.holes import make_hole, shown_to
from evoworld.evaluation.revisits import EQUAL, peek, start_at, walk_lap, walk_long
from evoworld.world.evolve import World


def circle(count, radius=0.4):
    """The last pose is the first."""
    angles = [2 * math.pi * i / (count - 1) for i in range(count)]
    return [[radius * math.cos(a) - radius, radius * math.sin(a), 0.0] for a in angles]


def test_a_lap_in_a_room_that_was_seen_whole():
    """One look from within shows all of a convex room: every later frame is near the truth."""
    walk = box_walk(circle(9), height=32)
    lap = walk_lap(lambda: World(height=32), walk, seed=0)
    assert len(lap.images) == 9 and lap.seconds > 0
    assert lap.truth > 25 and lap.delta > 0.98 and lap.delta_visible > 0.98
    assert lap.last_first > 28 and lap.revisit > 30


def test_a_world_that_forgets_is_found_out():
    """Each frame of other colours, nothing remembered."""

    class Fickle:
        def sample(self, condition, generator):
            tint = torch.rand(3, generator=generator) * 2 - 1
            made = condition.filled().clone()
            made[..., :3] = tint
            return made

    class Forgetful(World):
        def walk(self, path):
            for pose in path:
                self.start(prompt="x", seed=int(self._generator.initial_seed()) + 1)
                yield from super().walk(pose[None])

    lap = walk_lap(lambda: Forgetful(Fickle(), height=HEIGHT), box_walk(circle(9)), seed=0)
    assert lap.last_first < 33 and lap.revisit < 20 and lap.truth < 20


def test_the_frame_where_the_truth_was_given_does_not_count():
    """A perfect last frame lifts no number, a wrong one lowers none."""
    walk = box_walk(circle(5))
    lap = walk_lap(lambda: World(height=HEIGHT), walk, seed=0)
    other = replace(walk, image=walk.image.clone(), depth=walk.depth.clone())
    other.image[-1], other.depth[-1] = 1 - other.image[-1], 9.0
    wrong = walk_lap(lambda: World(height=HEIGHT), other, seed=0)
    for name in ("truth", "delta", "delta_visible"):
        assert getattr(wrong, name) == getattr(lap, name)


def test_visible_is_what_the_mask_says():
    walk = box_walk(circle(5))
    own = walk_lap(lambda: World(height=HEIGHT), walk, seed=0)
    assert len(own.visible) == 5 and own.visible[1].dtype == torch.bool
    nowhere = [torch.zeros_like(mask) for mask in own.visible]
    assert math.isnan(walk_lap(lambda: World(height=HEIGHT), walk, 0, visible=nowhere).delta_visible)


def test_segments_are_whole(monkeypatch):
    """The first frame, which is given, alone; then as many as a segment has."""
    walk, asked, stroll = box_walk(circle(10)), [], World.walk
    monkeypatch.setattr(World, "walk", lambda self, path: asked.append(path) or stroll(self, path))
    lap = walk_lap(lambda: World(height=HEIGHT, num_frames=3), walk, seed=0, look_every=3)
    parts = [len(path) for path in asked if len(path) > 1]
    assert len(lap.images) == 10 and parts == [3, 3, 3] and len(asked[0]) == 1
    asked.clear()
    path = walk.camera_to_world
    walk_long(lambda: World(height=HEIGHT, num_frames=3), walk.select([0]), path, laps=2, seed=0, look_every=3)
    assert [len(path) for path in asked if len(path) > 1] == [3, 3, 3, 3, 3, 2]


def test_looking_leaves_no_trace():
    walk = box_walk(circle(5))
    world = World(tiny_model(), steps=1)
    start_at(world, walk, seed=0)
    list(world.walk(walk.camera_to_world[:2]))
    poses, rows, state = len(world.memory.poses), world.memory.nbytes, world._generator.get_state()
    first, again = (peek(world, walk.camera_to_world[3:4]) for _ in range(2))
    assert torch.equal(first, again) and first.shape == (HEIGHT, 2 * HEIGHT, 3)
    assert len(world.memory.poses) == poses and world.memory.nbytes == rows
    assert torch.equal(world._generator.get_state(), state)


def test_a_long_walk_of_laps():
    walk = box_walk(circle(9))
    long = walk_long(lambda: World(height=HEIGHT), walk.select([0]), walk.camera_to_world, laps=3, seed=0)
    assert long.frames == 24 and 20 < long.revisit <= EQUAL
    assert 0 < long.megabytes < 5 and long.slowdown > 0 and long.seconds > 0


@pytest.mark.parametrize("model", [None, tiny_model()], ids=["fill-only", "model"])
def test_turning_the_input_turns_the_output(model):
    condition = shown_to(make_hole("wedge", box_walk(circle(9)), 2), model).condition
    assert roll_error(model, condition, turns=3, seed=0) < 1e-3


def test_a_model_that_knows_longitudes_is_found_out():
    model = tiny_model()
    condition = shown_to(make_hole("wedge", box_walk(circle(9)), 2), model).condition
    decode = model.decode
    model.decode = lambda *a: decode(*a) + torch.linspace(0, 0.1, 2 * HEIGHT)[:, None]
    assert roll_error(model, condition, turns=3, seed=0) > 0.01


def test_a_world_turned_by_a_pixel():
    walk = box_walk(circle(9)).select(range(3))
    assert turned_likeness(lambda: World(height=HEIGHT), walk, 1, seed=0) > 45

    class Striped(World):
        def walk(self, path):
            for frame in super().walk(path):
                yield frame._replace(image=frame.image * torch.linspace(0, 1, 2 * HEIGHT)[:, None])

    assert turned_likeness(lambda: Striped(height=HEIGHT), walk, 1, seed=0) < 35
