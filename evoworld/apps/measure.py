"""How well held-out frames of a capture are rendered, by a memory or by its peer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from evoworld.data import Frame
from evoworld.evaluation import depth_metrics, psnr, ssim
from evoworld.evaluation.metrics import SSIM_WINDOW


@dataclass(frozen=True)
class Quality:
    """Means over the held-out frames; NaN where a measure is undefined (tiny images, no valid depth)."""

    psnr: float  # decibels
    ssim: float
    abs_rel: float  # mean of |depth - truth| / truth
    delta: float  # share of pixels whose depth is right within 25 %


def measure(
    frames: Iterable[Frame],
    render: Callable[[Frame], tuple[torch.Tensor, torch.Tensor]],
) -> Quality:
    """The quality of what `render` makes of the camera and pose of each frame.

    Args:
        frames: not observed; at least one.
        render: gives an image `[H, W, 3]` of 0..1 and the ranges `[H, W]` in metres (0: nothing there) for a frame.

    Raises:
        ValueError: no frames.

    Example:
        >>> from evoworld.geometry import Panorama
        >>> frame = Frame(torch.rand(16, 32, 3), torch.ones(16, 32), torch.eye(4), Panorama(16, 32), "first")
        >>> measure([frame], lambda frame: (frame.image, frame.depth * 1.1))
        Quality(psnr=inf, ssim=1.0, abs_rel=0.1, delta=1.0)
    """
    rows = []
    for frame in frames:
        image, distance = render(frame)
        depth = (math.nan, math.nan)
        if frame.depth is not None:
            depth = depth_metrics(distance, frame.camera.range_from_depth(frame.depth))
        small = min(frame.image.shape[:2]) < SSIM_WINDOW
        rows.append((psnr(image, frame.image), math.nan if small else ssim(image, frame.image), *depth))
    if not rows:
        raise ValueError("frames: expected at least one, got none")
    return Quality(*(round(sum(column) / len(rows), 6) for column in zip(*rows, strict=True)))
