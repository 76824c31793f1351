"""The embedding of rays: Pluecker coordinates, in frames that turn with the panorama."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from evoworld.geometry import Panorama
from evoworld.nn.plucker import RAY_CHANNELS, local_frames, ray_embedding

GENERATOR = torch.Generator().manual_seed(5)


def about_the_vertical(angle):
    cosine, sine = math.cos(angle), math.sin(angle)
    return torch.tensor([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]], dtype=torch.float64)


def test_frames_are_orthonormal_and_look_where_the_camera_does():
    forward, east, north = local_frames(6, 12, torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(forward.flatten(0, 1), Panorama(6, 12).directions(torch.float64))
    frames = torch.stack((forward, east, north), -1)
    torch.testing.assert_close(frames.mT @ frames, torch.eye(3, dtype=torch.float64).expand(6, 12, 3, 3))
    assert (north[..., 1] < 0).all(), "north is up the image, and y points down"
    torch.testing.assert_close(torch.linalg.cross(east, forward), north)


def test_is_the_moment_of_each_ray_in_its_own_frame():
    position = torch.randn(2, 3, 3, generator=GENERATOR, dtype=torch.float64)
    embedding = ray_embedding(6, 12, position)
    assert embedding.shape == (2, 3, 6, 12, RAY_CHANNELS)
    forward, east, north = local_frames(6, 12, position)
    length = position.norm(dim=-1, keepdim=True)
    scaled = (position / length * length.asinh())[:, :, None, None].expand(2, 3, 6, 12, 3)
    moment = torch.linalg.cross(scaled, forward.expand_as(scaled))
    latitude = torch.asin(-forward[..., 1])
    parts = latitude.sin(), latitude.cos(), *((moment * x).sum(-1) for x in (east, north)), (scaled * forward).sum(-1)
    for channel, part in enumerate((*parts, length.asinh()[..., None].expand(2, 3, 6, 12))):
        torch.testing.assert_close(embedding[..., channel], part.expand(2, 3, 6, 12), msg=f"channel {channel}")


@pytest.mark.parametrize("columns", [1, 5, -3])
def test_rolls_with_the_panorama(columns):
    position = torch.randn(4, 3, generator=GENERATOR, dtype=torch.float64)
    turned = position @ about_the_vertical(2 * math.pi * columns / 12).T  # content that moves right by so many columns
    torch.testing.assert_close(ray_embedding(6, 12, turned), ray_embedding(6, 12, position).roll(columns, -2))


def test_gradients_are_right_and_finite_where_nothing_moved():
    position = torch.randn(2, 3, generator=GENERATOR, dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda position: ray_embedding(2, 4, position), position)
    still = torch.zeros(3, requires_grad=True)
    embedding = ray_embedding(2, 4, still)
    assert (embedding[..., 2:] == 0).all()
    embedding.square().sum().backward()
    assert torch.isfinite(still.grad).all()


def test_far_away_is_compressed():
    near, far = ray_embedding(4, 8, torch.tensor([[0.01, 0, 0], [1000.0, 0, 0]])).unbind(0)
    assert near[..., 5].allclose(torch.tensor(0.01), atol=1e-6)
    assert far[..., 5].allclose(torch.tensor(math.asinh(1000)), atol=1e-4)


@pytest.mark.parametrize(("size", "shape"), [((0, 4), (3,)), ((2, 0), (3,)), ((2, 4), (4,)), ((2, 4), ())])
def test_says_what_does_not_fit(size, shape):
    with pytest.raises(ValueError, match="ray_embedding"):
        ray_embedding(*size, torch.zeros(shape))
