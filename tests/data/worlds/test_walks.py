import pytest
import torch

from evoworld.data.worlds import LEVEL_WALKS, WALKS, make_apartment, make_courtyard, make_walk, render
from evoworld.geometry import Panorama, check_pose

WORLDS = [make_apartment(0), make_apartment(2), make_courtyard(1), make_courtyard(3)]
STEP = 0.2


def positions(world, kind, num_frames=24, seed=1):
    return make_walk(world, kind, num_frames, seed, STEP)[:, :3, 3]


@pytest.mark.parametrize("kind", WALKS)
def test_walks_stay_where_a_head_may_be(kind):
    for world in WORLDS:
        for seed in range(3):
            places = positions(world, kind, seed=seed)
            middles = torch.tensor(world.free_origin) + (world.free.nonzero() + 0.5) * world.free_cell
            outside = (places[:, None, :2] - middles).abs().amax(-1).amin(-1) - world.free_cell / 2
            assert outside.max() < 0.02
            assert ((places[:, 2] > 1.2) & (places[:, 2] < 1.7)).all()


@pytest.mark.parametrize("kind", LEVEL_WALKS)
def test_steps_are_even_and_the_camera_level_with_one_yaw(kind):
    for world in WORLDS:
        poses = make_walk(world, kind, 24, 1, STEP)
        check_pose(poses)
        assert (poses[:, :3, :3] == poses[0, :3, :3]).all()
        torch.testing.assert_close(poses[0, :3, 1], torch.tensor([0.0, 0.0, -1.0]))
        steps = (poses[1:, :3, 3] - poses[:-1, :3, 3]).norm(dim=-1)
        assert steps.max() < (1.5 if kind == "loop" else 1.01) * STEP
        assert steps.median() > 0.9 * steps.max() > 0.04


def test_loops_close():
    for world in WORLDS:
        places = positions(world, "loop", 33)
        assert places[0].equal(places[-1])
        assert (places - places[0]).norm(dim=-1).max() > 1


def test_out_and_back_returns_over_its_own_steps():
    for world in WORLDS:
        places = positions(world, "out_and_back", 25)
        torch.testing.assert_close(places, places.flip(0))
        even = positions(world, "out_and_back", 24)
        torch.testing.assert_close(even[1:], even[1:].flip(0))


def test_straight_walks_are_straight():
    for world in WORLDS:
        steps = positions(world, "straight").diff(dim=0)
        torch.testing.assert_close(steps, steps[:1].expand_as(steps), atol=1e-4, rtol=0)


def test_looking_around_turns_on_the_spot():
    poses = make_walk(WORLDS[0], "look_around", 9, seed=0)
    assert (poses[:, :3, 3] == poses[0, :3, 3]).all()
    torch.testing.assert_close(poses[0], poses[-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(poses[0, :3, 2], -poses[4, :3, 2], atol=1e-5, rtol=0)


def test_nothing_is_within_reach_of_a_head():
    for world in WORLDS:
        places = make_walk(world, "curve", 12, seed=4, step=0.5)
        depth = render(world, Panorama(16, 32), places).depth
        assert depth[depth > 0].min() > 0.15


def test_the_seed_decides():
    first, again, other = (make_walk(WORLDS[0], "curve", 6, seed) for seed in (7, 7, 8))
    assert first.equal(again) and not first.equal(other)


def test_one_frame():
    for kind in WALKS:
        assert make_walk(WORLDS[0], kind, 1, seed=0).shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "jump"}, "kind: expected one of straight"),
        ({"num_frames": 0}, "num_frames: expected at least 1, got 0"),
        ({"step": 0.0}, "step: expected metres > 0"),
        ({"step": float("nan")}, "step: expected metres > 0"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        make_walk(WORLDS[0], **{"kind": "curve", "num_frames": 3, "seed": 0, **change})
