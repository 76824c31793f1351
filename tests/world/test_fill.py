"""Holes filled from around them."""

import pytest
import torch

from evoworld.world.fill import fill_rgbd, pull_push
from evoworld.world.rgbd import encode_rgbd


def smooth(height=32, width=64):
    """An RGB-D panorama without detail, and without a seam."""
    lon = (torch.arange(width) + 0.5) / width * 2 * torch.pi
    lat = (torch.arange(height)[:, None] + 0.5) / height * torch.pi
    planes = (lon.sin() * lat.sin(), lon.cos() * lat.sin(), lat.cos().expand(height, width), 0.3 * (lon.cos() + lat))
    return 0.4 * torch.stack(planes, -1)


def wedge(height=32, width=64, first=20, columns=12):
    visibility = torch.ones(height, width)
    visibility[:, first : first + columns] = 0
    return visibility


def test_what_is_visible_stays_to_the_bit():
    rgbd = torch.rand(2, 3, 32, 64, 4) * 2 - 1
    visibility = (torch.rand(2, 3, 32, 64) > 0.3).float()
    filled = fill_rgbd(rgbd, visibility)
    seen = visibility > 0
    assert torch.equal(filled[seen], rgbd[seen]) and torch.isfinite(filled).all()


@pytest.mark.parametrize("first", [20, 58])  # within the image, and across the seam
def test_a_wide_hole_is_filled_from_both_sides(first):
    rgbd, visibility = smooth(), wedge().roll(first - 20, 1)
    spoiled = torch.where(visibility[..., None] > 0, rgbd, 77.0)
    filled = fill_rgbd(spoiled, visibility)
    assert (filled - rgbd).abs().mean() < 0.02 and (filled - rgbd).abs().max() < 0.3


def test_a_constant_stays_a_constant_and_nothing_is_grey():
    rgbd = torch.full((16, 32, 4), 0.25)
    visibility = torch.zeros(16, 32)
    assert (fill_rgbd(rgbd, visibility) == 0).all()
    visibility[3, 30] = 1
    assert torch.allclose(fill_rgbd(rgbd, visibility), rgbd, atol=1e-6)


def test_colours_and_depth_have_holes_of_their_own():
    rgbd, hole = smooth(), wedge()
    visibility = torch.stack((torch.ones_like(hole), hole), -1)
    filled = fill_rgbd(rgbd, visibility)
    assert torch.equal(filled[..., :3], rgbd[..., :3])
    assert not torch.equal(filled[..., 3], rgbd[..., 3]) and (filled - rgbd).abs().max() < 0.3


def test_what_is_uncovered_is_taken_for_the_background():
    """A hole between a near thing and a far wall: the wall's."""
    near, far = encode_rgbd(torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]), torch.tensor([0.7, 4.0]))
    rgbd = far.repeat(16, 32, 1)
    rgbd[:, 10:16] = near
    visibility = wedge(16, 32, first=16, columns=2)
    filled = fill_rgbd(rgbd, visibility)[4:12, 16:18]
    assert ((filled - far).norm(dim=-1) < (filled - near).norm(dim=-1)).all()


@pytest.mark.parametrize("columns", [4, -12, 64])
def test_rolling_what_is_given_rolls_what_is_filled(columns):
    rgbd = torch.rand(32, 128, 4)[:, :64] * 2 - 1
    visibility = wedge(columns=40) * (torch.rand(32, 64) > 0.5)
    rolled = fill_rgbd(rgbd.roll(columns, 1), visibility.roll(columns, 1))
    assert torch.allclose(rolled, fill_rgbd(rgbd, visibility).roll(columns, 1), atol=1e-6)


def test_partly_visible_pixels_lie_between():
    rgbd, visibility = torch.ones(16, 32, 4), torch.ones(16, 32)
    rgbd[5, 5], visibility[5, 5] = -1.0, 0.5
    assert (fill_rgbd(rgbd, visibility)[5, 5].abs() < 0.2).all()


def test_gradients_reach_what_is_visible_alone():
    rgbd = torch.rand(16, 32, 4, requires_grad=True)
    visibility = wedge(16, 32)
    fill_rgbd(rgbd, visibility).square().sum().backward()
    assert torch.isfinite(rgbd.grad).all()
    assert (rgbd.grad[visibility == 0] == 0).all() and (rgbd.grad[visibility == 1] != 0).all()


@pytest.mark.parametrize(("height", "width"), [(1, 2), (3, 6), (17, 35), (40, 12)])
@pytest.mark.parametrize("wraps", [True, False])
def test_any_size(height, width, wraps):
    planes, known = torch.rand(1, 2, height, width), (torch.rand(1, 1, height, width) > 0.5).float()
    known[..., 0, 0] = 1
    filled = pull_push(planes, known, wraps=wraps)
    assert filled.shape == planes.shape
    assert filled.min() >= planes.min() - 1e-6 and filled.max() <= planes.max() + 1e-6
    assert torch.equal(filled * known, planes * known)
