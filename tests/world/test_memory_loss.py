"""The memory reconstruction loss: zero for what is right, and blind where the memory shows nothing."""

import torch

from evoworld.world.memory_loss import Reconstruction, reconstruction_loss
from evoworld.world.rgbd import encode_rgbd


def frame():
    torch.manual_seed(0)
    depth = 1 + 3 * torch.rand(2, 8, 16)
    depth[:, :2] = 0  # sky
    return encode_rgbd(torch.rand(2, 8, 16, 3), depth), depth


def right_answer():
    rgbd, depth = frame()
    cells = depth.unflatten(1, (4, 2)).unflatten(3, (8, 2))
    image = rgbd[..., :3].unflatten(1, (4, 2)).unflatten(3, (8, 2)).mean((2, 4))
    return rgbd, Reconstruction(image, cells.amax((2, 4)), (cells.amax((2, 4)) > 0).float())


def test_right_is_zero_anywhere_within_a_cell():
    rgbd, answer = right_answer()
    nearest = frame()[1].unflatten(1, (4, 2)).unflatten(3, (8, 2)).amin((2, 4))
    for share in (0.0, 0.5, 1.0):
        parts = reconstruction_loss(answer._replace(depth=torch.lerp(nearest, answer.depth, share)), rgbd)
        assert all(part < 1e-6 for part in parts.values())
    for factor in (0.5, 3.0):
        parts = reconstruction_loss(answer._replace(depth=factor * answer.depth), rgbd)
        assert parts["depth"] > 0.02 and parts["image"] < 1e-10


def test_each_part_by_hand():
    rgbd, answer = right_answer()
    parts = reconstruction_loss(answer._replace(image=answer.image + 0.1), rgbd)
    torch.testing.assert_close(parts["image"], torch.tensor(0.01))
    parts = reconstruction_loss(answer._replace(opacity=answer.opacity * 0.5), rgbd)
    rows = torch.tensor([0.0, 1.0, 1.0, 1.0])  # the first is sky
    area = torch.tensor([-1.0, -(0.5**0.5), 0.0, 0.5**0.5, 1.0]).diff()
    torch.testing.assert_close(parts["opacity"], 0.25 * (rows * area).sum() / area.sum())


def test_rays_that_meet_nothing_say_nothing_of_colour_and_depth():
    rgbd, answer = right_answer()
    opacity = answer.opacity.clone()
    opacity[:, :, :3] = 0
    image = answer.image.clone().requires_grad_()
    depth = (2 * answer.depth).requires_grad_()
    parts = reconstruction_loss(Reconstruction(image + 0.1, depth, opacity), rgbd)
    (parts["image"] + parts["depth"]).backward()
    assert image.grad[:, :, :3].abs().max() == 0 and depth.grad[:, :, :3].abs().max() == 0
    assert image.grad[:, 1:, 3:].abs().min() > 0
    nothing = reconstruction_loss(Reconstruction(image, depth, torch.zeros_like(opacity)), rgbd)
    assert nothing["image"] == 0 and nothing["depth"] == 0 and nothing["opacity"] > 0.5


def test_what_is_too_far_away_is_to_be_transparent():
    rgbd, answer = right_answer()
    transparent = answer._replace(opacity=torch.zeros_like(answer.opacity))
    assert reconstruction_loss(transparent, rgbd)["opacity"] > 0.5  # all is between 1 and 4 m
    assert reconstruction_loss(transparent, rgbd, reach=0.66)["opacity"] == 0
    assert reconstruction_loss(answer, rgbd, reach=0.66)["opacity"] > 0.5
    for either in (transparent, answer):
        assert reconstruction_loss(either, rgbd, reach=0.9)["opacity"] < 0.5  # up to 1.35 m it does not matter
