"""Image and depth metrics: PSNR, SSIM, AbsRel and delta < 1.25, plain or weighted by solid angle."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Wang et al. 2004, section III.C: an 11 x 11 circular-symmetric Gaussian of 1.5 pixels, K1 = 0.01, K2 = 0.03.
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_K1 = 0.01
SSIM_K2 = 0.03
DELTA_THRESHOLD = 1.25


class DepthMetrics(NamedTuple):
    """What `depth_metrics` returns; NaN where no ground-truth pixel is valid."""

    abs_rel: float
    delta: float


def psnr(
    image: Tensor,  # [H, W, C]
    target: Tensor,  # [H, W, C]
    weight: Tensor | None = None,  # [H, W]
) -> float:
    """Peak signal-to-noise ratio of an image whose values lie in 0..1, in decibels.

    `PSNR = -10 log10(sum_p weight_p |image_p - target_p|^2 / (C sum_p weight_p))`

    Args:
        image: `[H, W, C]`, what was rendered.
        target: `[H, W, C]`, what was photographed.
        weight: `[H, W]`, at least 0: a mask, or `camera.solid_angle()` for WS-PSNR; None weighs every pixel alike.

    Returns:
        Decibels; infinity where the two are equal. No gradient.

    Raises:
        ValueError: the shapes differ, or the weights sum to 0.

    Source: WS-PSNR is Sun, Lu and Yu 2017, "Weighted-to-spherically-uniform quality evaluation for omnidirectional
    video", equations 5 and 6.

    >>> round(psnr(torch.full((4, 8, 3), 0.6), torch.full((4, 8, 3), 0.5)), 3)
    20.0
    """
    _check_pair(image, target)
    squared_error = (image.double() - target.double()).square().mean(dim=-1)
    mean = _weighted_mean(squared_error, weight)
    return math.inf if mean == 0 else -10 * math.log10(mean)


def ssim(
    image: Tensor,  # [H, W, C]
    target: Tensor,  # [H, W, C]
    weight: Tensor | None = None,  # [H, W]
) -> float:
    """Mean structural similarity of two images whose values lie in 0..1.

    `SSIM = (2 mx my + C1)(2 sxy + C2) / ((mx^2 + my^2 + C1)(sx^2 + sy^2 + C2))` with means, variances and covariance
    under an 11 x 11 Gaussian window, averaged over the windows that lie inside the image and over the channels.

    Args:
        image: `[H, W, C]`, H and W at least 11.
        target: `[H, W, C]`.
        weight: `[H, W]`, weight of the window centred on a pixel; None weighs every window alike.

    Returns:
        A number up to 1, which equal images reach. No gradient.

    Raises:
        ValueError: the shapes differ or an image is smaller than the window.

    Source: Wang, Bovik, Sheikh and Simoncelli 2004, "Image quality assessment: from error visibility to structural
    similarity", equation 13.

    >>> round(ssim(torch.ones(16, 32, 3), torch.zeros(16, 32, 3)), 6)  # C1 / (1 + C1)
    0.0001
    """
    _check_pair(image, target)
    if min(image.shape[:2]) < SSIM_WINDOW:
        raise ValueError(f"image: expected at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, got {tuple(image.shape[:2])}")
    x = image.double().permute(2, 0, 1).unsqueeze(1)
    y = target.double().permute(2, 0, 1).unsqueeze(1)
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    variance_x = _window_mean(x * x) - mean_x.square()
    variance_y = _window_mean(y * y) - mean_y.square()
    covariance = _window_mean(x * y) - mean_x * mean_y
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    similarity = (luminance * structure).mean(dim=(0, 1))
    border = SSIM_WINDOW // 2
    return _weighted_mean(similarity, None if weight is None else weight[border:-border, border:-border])


def depth_metrics(
    depth: Tensor,  # [H, W]
    target: Tensor,  # [H, W]
    weight: Tensor | None = None,  # [H, W]
) -> DepthMetrics:
    """Absolute relative error and the share of pixels within 25 % of the truth.

    `AbsRel = mean |depth - target| / target`, `delta = share of max(depth / target, target / depth) < 1.25`, both over
    the pixels whose ground truth is finite and positive.

    Args:
        depth: `[H, W]` metres; 0 or not finite where nothing was found, which counts as an error of 1.
        target: `[H, W]` metres; 0 or not finite where there is nothing to find.
        weight: `[H, W]`, for instance `camera.solid_angle()`; None weighs every valid pixel alike.

    Returns:
        `DepthMetrics(abs_rel, delta)`. No gradient.

    Raises:
        ValueError: the shapes differ.

    Source: Eigen, Puhrsch and Fergus 2014, "Depth map prediction from a single image", section 4.3.

    >>> depth_metrics(torch.tensor([[1.0, 4.0, 9.0]]), torch.tensor([[1.0, 2.0, 0.0]]))
    DepthMetrics(abs_rel=0.5, delta=0.5)
    """
    _check_pair(depth, target)
    valid = torch.isfinite(target) & (target > 0)
    truth = target[valid].double()
    found = torch.nan_to_num(depth[valid].double(), nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0)
    if truth.numel() == 0:
        return DepthMetrics(math.nan, math.nan)
    weight = None if weight is None else weight[valid]
    within = torch.maximum(found / truth, truth / found) < DELTA_THRESHOLD
    return DepthMetrics(
        abs_rel=_weighted_mean((found - truth).abs() / truth, weight),
        delta=_weighted_mean(within.double(), weight),
    )


def _window_mean(planes: Tensor) -> Tensor:  # [C, 1, H, W] -> [C, 1, H - 10, W - 10]
    offsets = torch.arange(SSIM_WINDOW, dtype=planes.dtype, device=planes.device) - SSIM_WINDOW // 2
    gaussian = torch.exp(-0.5 * (offsets / SSIM_SIGMA).square())
    gaussian = gaussian / gaussian.sum()
    return F.conv2d(F.conv2d(planes, gaussian.view(1, 1, -1, 1)), gaussian.view(1, 1, 1, -1))


def _weighted_mean(values: Tensor, weight: Tensor | None) -> float:
    if weight is None:
        return values.mean().item()
    if weight.shape != values.shape:
        raise ValueError(f"weight: expected one value a pixel {tuple(values.shape)}, got {tuple(weight.shape)}")
    total = weight.double().sum()
    if total <= 0:
        raise ValueError("weight: expected a positive sum, got 0")
    return ((values * weight).sum() / total).item()


def _check_pair(found: Tensor, target: Tensor) -> None:
    if found.shape != target.shape:
        raise ValueError(f"expected two of one shape, got {tuple(found.shape)} and {tuple(target.shape)}")
