import math

import pytest
import torch

from evoworld.data.walk import level_poses
from evoworld.data.worlds import make_apartment, make_courtyard, make_walk, render
from evoworld.data.worlds.scene import Material, Room, WorldBuilder
from evoworld.data.worlds.solids import BOX
from evoworld.geometry import Panorama, Pinhole


@pytest.fixture(scope="module")
def courtyard():
    return make_courtyard(3)


@pytest.fixture(scope="module")
def poses(courtyard):
    return make_walk(courtyard, "curve", 3, seed=0)


def test_frames_are_finite_and_have_depth_where_there_is_no_sky(courtyard, poses):
    seen = render(courtyard, Panorama(20, 40), poses)
    assert seen.image.shape == (3, 20, 40, 3) and seen.depth.shape == seen.object_id.shape == (3, 20, 40)
    assert seen.image.isfinite().all() and seen.image.min() >= 0 and seen.image.max() <= 1
    assert seen.image.std(dim=(1, 2)).min() > 0.02
    assert (seen.depth[:, 0] == 0).any() and (seen.depth[:, 10:] > 0).all()
    assert (seen.object_id[seen.depth == 0] == 0).all()
    assert 0 < seen.object_id.max() <= len(courtyard.things)


def test_the_ground_is_as_far_as_the_camera_is_high(courtyard, poses):
    depth = render(courtyard, Panorama(64, 128), poses[:1]).depth[0, -1]
    below = math.sin(math.pi * 63.5 / 64 - math.pi / 2)
    torch.testing.assert_close(depth, torch.full_like(depth, poses[0, 2, 3] / below), rtol=1e-4, atol=0)


def test_frames_do_not_depend_on_each_other_nor_on_the_size_of_tiles(courtyard, poses):
    camera = Panorama(9, 18)
    together = render(courtyard, camera, poses)
    for i, pose in enumerate(poses):
        alone = render(courtyard, camera, pose[None])
        assert alone.depth[0].equal(together.depth[i]) and alone.object_id[0].equal(together.object_id[i])
        torch.testing.assert_close(alone.image[0], together.image[i])


def test_a_turn_by_whole_pixels_rolls_the_picture(courtyard, poses):
    position = poses[:1, :3, 3]
    camera = Panorama(16, 32)
    first, turned = (render(courtyard, camera, level_poses(position, 0.3 - turn)) for turn in (0, math.pi / 4))
    same = (first.depth.roll(-4, -1) - turned.depth).abs() < 1e-3
    assert same.float().mean() > 0.99
    assert (first.image.roll(-4, -2) - turned.image)[same].abs().max() < 0.05


def test_pinhole_depth_is_along_the_axis():
    world = make_apartment(1)
    pose = make_walk(world, "straight", 1, seed=0)
    seen = render(world, Pinhole(5, 5, fx=4.0, fy=4.0, cx=2.5, cy=2.5), pose)
    wide = render(world, Pinhole(5, 5, fx=40.0, fy=40.0, cx=2.5, cy=2.5), pose)
    torch.testing.assert_close(seen.depth[0, 2, 2], wide.depth[0, 2, 2])
    wall = wide.depth[0]
    assert (wall - wall.flip(1)).abs().max() < wall.max()


def lit_box(brightness):
    """A floor of 4 m by 4 m with a board 0.5 m above its middle, under a lamp."""
    builder = WorldBuilder(0)
    builder.box((-2, -2, -0.1), (2, 2, 0), Material((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    builder.solids.add(BOX, (0, 0, 0.5), (0.2, 0.2, 0.01), 0, builder.thing("board", "grey", 0))
    builder.rooms.append(Room("cell", (-2, -2), (2, 2), (), (0.0, 0.0, 3.0), (brightness,) * 3))
    light = {
        "ambient": ((0.1, 0.1, 0.1), (0.1, 0.1, 0.1)),
        "sun_direction": (0.0, 0.0, 1.0),
        "sun_colour": (0.0, 0.0, 0.0),
        "sky": ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    }
    return builder.build("apartment", torch.ones(1, 1, dtype=torch.bool), (0.0, 0.0), 1.0, light, ("night",))


def test_lamps_shine_and_things_cast_shadows():
    pose = level_poses(torch.tensor([[-1.5, 0.0, 0.3]]), 0.0)
    camera = Pinhole(1, 3, fx=1.0, fy=1.0, cx=0.5, cy=-0.3)  # looks down at the floor ahead
    lit, dark = (render(lit_box(b), camera, pose) for b in (20.0, 0.0))
    assert (lit.image > dark.image).all()
    eye = torch.tensor([[-1.0, 0.0, 0.25]])
    directions = torch.tensor([[0.0, 0.0, 0.0], [-0.6, 0.0, 0.0]]) - eye  # below the board, and beside it
    brightness = []
    for direction in directions:
        steep = Pinhole(1, 1, fx=1.0, fy=1.0, cx=0.5, cy=0.5 + direction[2].item() / direction[0].item())
        seen = render(lit_box(20.0), steep, level_poses(eye, 0.0))
        assert seen.depth[0, 0, 0] == pytest.approx(direction[0].item(), rel=1e-4)
        brightness.append(seen.image.mean().item())
    shadow = render(lit_box(0.0), steep, level_poses(eye, 0.0)).image.mean().item()
    assert brightness[0] == pytest.approx(shadow, abs=0.02) and brightness[1] > shadow + 0.2
