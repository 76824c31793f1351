"""PSNR, SSIM and depth metrics against their formulas and against scikit-image."""

import math

import numpy as np
import pytest
import torch

from evoworld.evaluation import depth_metrics, psnr, ssim
from evoworld.geometry import Panorama


def two_images(height=21, width=34, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(height, width, channels, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(target.permute(2, 0, 1), 3, 1, 1).permute(1, 2, 0)
    return (0.7 * smooth + 0.3 * torch.rand(target.shape, generator=generator)).contiguous(), target


def ssim_by_loops(x, y):
    """Wang et al. 2004, equation 13, one window after another."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for row in range(x.shape[0] - 10):
        for column in range(x.shape[1] - 10):
            for channel in range(x.shape[2]):
                a = x[row : row + 11, column : column + 11, channel]
                b = y[row : row + 11, column : column + 11, channel]
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                variance_a = (window * (a - mean_a) ** 2).sum()
                variance_b = (window * (b - mean_b) ** 2).sum()
                covariance = (window * (a - mean_a) * (b - mean_b)).sum()
                numerator = (2 * mean_a * mean_b + 0.01**2) * (2 * covariance + 0.03**2)
                values.append(numerator / ((mean_a**2 + mean_b**2 + 0.01**2) * (variance_a + variance_b + 0.03**2)))
    return np.mean(values)


def test_ssim_equals_the_formula_window_by_window():
    image, target = two_images()
    expected = ssim_by_loops(image.double().numpy(), target.double().numpy())
    assert 0.05 < expected < 0.9
    assert ssim(image, target) == pytest.approx(expected, abs=1e-9)


def test_psnr_and_ssim_equal_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    image, target = two_images(64, 128)
    expected = metrics.structural_similarity(
        image.numpy().astype(np.float64),
        target.numpy().astype(np.float64),
        data_range=1.0,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert ssim(image, target) == pytest.approx(expected, abs=1e-6)
    expected = metrics.peak_signal_noise_ratio(target.numpy(), image.numpy(), data_range=1)
    assert psnr(image, target) == pytest.approx(expected)


def test_equal_images():
    image, _ = two_images()
    assert psnr(image, image) == math.inf
    assert ssim(image, image) == pytest.approx(1.0)


def test_psnr_of_a_known_error():
    target = torch.zeros(4, 8, 3)
    assert psnr(target + 0.1, target) == pytest.approx(20.0, abs=1e-4)
    half = torch.zeros(4, 8)
    half[:2] = 1
    wrong_below = target.clone()
    wrong_below[2:] = 1.0
    wrong_below[:2] = 0.01
    assert psnr(wrong_below, target, half) == pytest.approx(40.0, abs=1e-4)


def test_ws_psnr_weighs_by_the_sphere():
    """An error at one pole row counts by its solid angle, which is exact for the sphere."""
    camera = Panorama(32, 64)
    target = torch.zeros(32, 64, 3)
    image = target.clone()
    image[0] = 1.0
    share = 0.5 * (1 - math.cos(math.pi / 32))
    assert psnr(image, target, camera.solid_angle()) == pytest.approx(-10 * math.log10(share), abs=1e-3)
    assert psnr(image, target) == pytest.approx(10 * math.log10(32))


def test_ssim_weight_chooses_windows():
    image, target = two_images()
    weight = torch.zeros(image.shape[:2])
    weight[:, :16] = 1
    assert ssim(image, target, weight) == pytest.approx(ssim(image[:, :21], target[:, :21]), abs=1e-9)


def test_depth_metrics_count_only_valid_truth_and_every_hole():
    truth = torch.tensor([[1.0, 2.0, 4.0, 0.0, math.nan, math.inf]])
    depth = torch.tensor([[1.1, 2.0, 5.2, 3.0, 1.000, 1.0000000]])
    found = depth_metrics(depth, truth)
    assert found.abs_rel == pytest.approx((0.1 + 0 + 0.3) / 3, abs=1e-6)
    assert found.delta == pytest.approx(2 / 3)
    for missing in (0.0, math.nan, math.inf):
        depth[0, 1] = missing
        found = depth_metrics(depth, truth)
        assert found.abs_rel == pytest.approx((0.1 + 1 + 0.3) / 3, abs=1e-6)
        assert found.delta == pytest.approx(1 / 3)


def test_delta_is_symmetric():
    truth = torch.full((1, 4), 4.0)
    assert depth_metrics(torch.tensor([[4.9, 5.1, 3.3, 3.1]]), truth).delta == 0.5


def test_depth_metrics_weighted():
    truth = torch.tensor([[1.0, 1.0, 0.0]])
    found = depth_metrics(torch.tensor([[1.5, 1.0, 1.0]]), truth, torch.tensor([[1.0, 3.0, 100.0]]))
    assert found.abs_rel == pytest.approx(0.125)
    assert found.delta == pytest.approx(0.75)


def test_no_valid_truth_is_nan():
    found = depth_metrics(torch.ones(2, 2), torch.zeros(2, 2))
    assert math.isnan(found.abs_rel) and math.isnan(found.delta)


def test_bad_input():
    image = torch.zeros(16, 32, 3)
    with pytest.raises(ValueError, match="shape"):
        psnr(image, image[:-1])
    with pytest.raises(ValueError, match="weight"):
        psnr(image, image, torch.ones(4, 4))
    with pytest.raises(ValueError, match="positive sum"):
        psnr(image, image, torch.zeros(16, 32))
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(image[:10], image[:10])
    with pytest.raises(ValueError, match="shape"):
        depth_metrics(image[..., 0], image)
