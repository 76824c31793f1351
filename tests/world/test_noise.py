"""The noise that panoramas are made from: unit variance, correlated as panoramas are, no seam, no poles."""

import pytest
import torch

from evoworld.world.noise import LASTING, SCALES, panorama_noise

COUNT = 400


@pytest.fixture(scope="module")
def noise():
    generator = torch.Generator().manual_seed(0)
    return torch.stack([panorama_noise(2, 16, generator) for _ in range(COUNT)])  # [N, T, H, W, 4]


def correlation(a, b):
    return float((a * b).mean(0).mean() / (a.square().mean(0) * b.square().mean(0)).sqrt().mean())


def test_shares_of_the_variance_are_whole():
    for share in (1, 2):
        assert sum(scale[share] for scale in SCALES) == pytest.approx(1)


def test_every_pixel_of_every_frame_has_unit_variance(noise):
    assert noise.shape == (COUNT, 2, 16, 32, 4)
    variance = noise.square().mean(0)
    assert variance.mean() == pytest.approx(1, abs=0.05)
    assert variance.min() > 0.6 and variance.max() < 1.5
    for rows in (variance[:, 0], variance[:, 8], variance[..., 0, :]):  # a pole, the horizon, the seam
        assert rows.mean() == pytest.approx(1, abs=0.15)


def test_frames_have_in_common_what_they_should(noise):
    assert correlation(noise[:, 0], noise[:, 1]) == pytest.approx(LASTING, abs=0.05)


def test_colours_go_together_and_depth_goes_alone(noise):
    assert correlation(noise[..., 0], noise[..., 1]) == pytest.approx(0.85, abs=0.05)
    assert abs(correlation(noise[..., 0], noise[..., 3])) < 0.1


def test_neighbours_are_alike_also_across_the_seam_and_near_the_poles(noise):
    depth = noise[:, 0, ..., 3]
    beside = correlation(depth[:, 8, 4:8], depth[:, 8, 5:9])
    assert beside > 0.8 > 0.5 > correlation(depth[:, 8, 0], depth[:, 8, 16])
    assert correlation(depth[:, :, 0], depth[:, :, -1]) == pytest.approx(beside, abs=0.1)
    assert correlation(depth[:, 0, :16], depth[:, 0, 16:]) > 0.7  # across the zenith


def test_the_seed_decides():
    first, again, other = (panorama_noise(1, 8, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.manual_seed(3)
    assert panorama_noise(1, 8).shape == (1, 8, 16, 4)
