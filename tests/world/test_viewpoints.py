"""Space that is known to be free, as earlier places saw past it."""

import math

import pytest
import torch
from box_world import CAMERA, box_frame, box_walk

from evoworld.geometry import Panorama, Pinhole
from evoworld.world.viewpoints import APART, CLEAR, NEAREST, Viewpoints

FAR = 4.0  # metres


def at(*place):
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor(place)
    return pose


def sphere(*places, distance=FAR, camera=CAMERA):
    viewpoints = Viewpoints()
    for place in places:
        viewpoints.add(torch.full((camera.height, camera.width), distance), at(*place), camera)
    return viewpoints


def directions(count=200):
    return torch.nn.functional.normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(0)), dim=-1)


def test_what_stands_before_is_in_free_space_and_what_stands_behind_is_not():
    viewpoints, rays, margin = sphere((1.0, 2.0, 3.0)), directions(), 0.1
    place = torch.tensor([1.0, 2.0, 3.0])
    edge = CLEAR * FAR - margin
    assert viewpoints.saw_past(place + 0.99 * edge * rays, margin).all()
    assert not viewpoints.saw_past(place + 1.01 * edge * rays, margin).any()
    assert not viewpoints.saw_past(torch.zeros(0, 3), margin).any()
    assert not Viewpoints().saw_past(rays, margin).any()


@pytest.mark.parametrize("camera", [CAMERA, Panorama(200, 400)], ids=["coarse", "fine"])
def test_a_room_is_free_up_to_its_walls(camera):
    """Between every two places of it, whichever way the camera was turned; and nowhere beyond its walls."""
    viewpoints = Viewpoints()
    frames = [box_frame(pose, camera) for pose in box_walk(9)]
    for frame in frames:
        if viewpoints.wants(frame.camera_to_world[:3, 3]):
            distance = camera.range_from_depth(frame.depth)
            viewpoints.add(distance, frame.camera_to_world, camera)
    origins, rays = camera.rays(frames[0].camera_to_world)
    distance = camera.range_from_depth(frames[0].depth).flatten()[:, None]
    assert viewpoints.saw_past(origins + 0.6 * distance * rays, 0.1).float().mean() > 0.95
    assert viewpoints.saw_past(origins + 0.98 * distance * rays, 0.1).float().mean() < 0.002
    assert not viewpoints.saw_past(origins + 1.2 * distance * rays, 0.1).any()


def test_what_an_image_does_not_show_is_not_known():
    """A turned camera that sees a quarter of the horizon."""
    camera, turn = Pinhole.from_fov(40, 60, math.radians(90)), torch.eye(4)
    turn[:3, :3] = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # looks along +x
    viewpoints = Viewpoints()
    viewpoints.add(torch.full((40, 60), FAR), turn, camera)
    points = torch.tensor([[1.0, 0, 0], [1, 0.3, 0.3], [-1, 0, 0], [0, 0, 1], [0, 1, 0]])
    assert viewpoints.saw_past(points, 0.0).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize(("height", "beside"), [(64, 0), (256, 1), (32, 3)], ids=["same", "finer", "coarser"])
def test_what_is_near_blocks_its_own_pixels(height, beside):
    """A column of the ranges that are kept; of an image of another size some beside it."""
    camera, size = Panorama(height, 2 * height), height / 64
    distance = torch.full((height, 2 * height), FAR)
    distance[:, int(64 * size) : math.ceil(65 * size)] = 1.0
    distance[int(30 * size), int(10 * size)] = 0.0  # not known
    viewpoints = Viewpoints()
    viewpoints.add(distance, torch.eye(4), camera)
    _, rays = Panorama(64, 128).rays(torch.eye(4))
    free = viewpoints.saw_past(2.0 * rays, 0.0).view(64, 128)
    assert not free[:, 64].any() and not free[30, 10]
    beyond = torch.ones(64, 128, dtype=torch.bool)
    beyond[:, 64 - beside : 65 + beside] = False
    beyond[30 - beside : 31 + beside, 10 - beside : 11 + beside] = False
    assert free[beyond].all()
    if height < 64:
        assert not free[:, 62:68].any()  # pixels of a coarse image beside an edge see both sides


def test_the_nearest_of_many_viewpoints_decide():
    """A point is checked from the places around it, however far the rest of the walk is, and however long."""
    walk = [(0.5 * i, 0.0, 0.0) for i in range(5 * NEAREST)]
    viewpoints = sphere(*walk, distance=1.0)
    points = torch.tensor(walk)
    assert viewpoints.saw_past(points + torch.tensor([0.0, 0.6, 0.0]), 0.0).all()
    assert not viewpoints.saw_past(points + torch.tensor([0.0, 1.1, 0.0]), 0.0).any()


def test_one_that_sees_past_is_enough():
    """A point behind a wall that stands before the nearest viewpoint, in plain sight of the next."""
    viewpoints = sphere((0.0, 0.0, 0.0), distance=0.5)
    viewpoints.add(torch.full((CAMERA.height, CAMERA.width), FAR), at(1.5, 0.0, 0.0), CAMERA)
    assert viewpoints.saw_past(torch.tensor([[0.6, 0.0, 0.0], [-3.0, 0.0, 0.0]]), 0.0).tolist() == [True, False]


def test_one_far_away_is_asked_too():
    """A point that those beside it cannot see, in plain sight of where the walk came from."""
    viewpoints = sphere(*((0.0, 0.5 * i, 0.0) for i in range(20)), distance=0.2)
    viewpoints.add(torch.full((CAMERA.height, CAMERA.width), 10 * FAR), at(20.0, 0.0, 0.0), CAMERA)
    assert viewpoints.saw_past(torch.tensor([[1.0, 5.0, 0.0]]), 0.0).all()


def test_places_near_by_are_not_kept_twice():
    viewpoints = sphere((0.0, 0.0, 0.0))
    assert not viewpoints.wants(torch.tensor([0.9 * APART, 0.0, 0.0]))
    assert viewpoints.wants(torch.tensor([0.0, 1.1 * APART, 0.0])) and Viewpoints().wants(torch.zeros(3))
    assert viewpoints.nbytes == 12 + 2 * 64 * 128
