"""The seam's gradient against that of the other columns."""

import math

import pytest
import torch

from evoworld.evaluation import seam_ratio


def test_pictures_that_go_around_have_none():
    longitude = torch.arange(64) / 64 * 2 * math.pi
    image = torch.stack([(longitude + phase).sin() for phase in torch.arange(16.0)])[None, ..., None]
    assert seam_ratio(image) == pytest.approx(1.0, abs=0.02)


def test_rolling_white_noise_changes_little_and_a_step_at_the_seam_much():
    noise = torch.rand(8, 32, 64, 3, generator=torch.Generator().manual_seed(0))
    assert seam_ratio(noise) == pytest.approx(1.0, abs=0.03)
    assert seam_ratio(noise + torch.linspace(0, 1, 64).view(-1, 1)) > 1.5


def test_flat_pictures_and_bad_ones():
    assert seam_ratio(torch.ones(4, 8, 3)) == 1.0
    assert seam_ratio(torch.tensor([0.0, 1.0]).view(1, 2, 1)) == 1.0
    with pytest.raises(ValueError, match="image"):
        seam_ratio(torch.ones(4, 1, 3))
