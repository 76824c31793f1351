"""Depth in colours, and the unit in which it fits into 16 bits."""

from __future__ import annotations

import math

import numpy as np
import torch

MAX_CODE = 65535  # the largest 16-bit number

# Turbo (Mikhailov, "Turbo, an improved rainbow colormap", Google AI blog, 2019) at 18 evenly spaced places.
_TURBO = np.array(
    [
        [48, 18, 59], [68, 60, 152], [73, 102, 223], [59, 142, 254], [41, 178, 245], [33, 210, 208],
        [46, 235, 160], [80, 250, 115], [128, 254, 81], [180, 246, 62], [224, 226, 53], [251, 195, 48],
        [255, 156, 43], [245, 115, 32], [225, 75, 16], [203, 42, 2], [168, 18, 1], [122, 4, 3],
    ]
)  # fmt: skip


def color_map(values: np.ndarray) -> np.ndarray:
    """Colours `[..., 3]` uint8 of values `[...]` in 0..1, from dark blue over green to dark red (Turbo).

    Example:
        >>> color_map(np.array([0.0, 1.0])).tolist()
        [[48, 18, 59], [122, 4, 3]]
    """
    places = np.linspace(0, 1, len(_TURBO))
    channels = [np.interp(values, places, _TURBO[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def depth_unit(max_depth: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, 50, ... mm in which `max_depth` metres still fit into 16 bits.

    Raises:
        ValueError: `max_depth` is not a finite number of at least 0.

    Example:
        >>> depth_unit(65.5), depth_unit(66.0), depth_unit(400.0)
        (0.001, 0.002, 0.01)
    """
    if not 0 <= max_depth < math.inf:
        raise ValueError(f"max_depth: expected a finite number of at least 0, got {max_depth}")
    decade = 1000  # units a metre
    while True:
        for multiple in (1, 2, 5):
            if max_depth <= MAX_CODE * multiple / decade:
                return multiple / decade
        decade /= 10


def depth_preview(
    depth: torch.Tensor,  # [H, W] metres
    near: float | None = None,
    far: float | None = None,
) -> np.ndarray:
    """Depth as colours, near red, far blue, on a logarithmic scale; black where there is nothing.

    Args:
        depth: `[H, W]` in metres; 0, negative or not finite: nothing there.
        near, far: the ends of the scale in metres, for pictures that are to be compared; without them, the 1st and
            99th percentile of this image.

    Returns:
        `[H, W, 3]` uint8.

    Example:
        >>> depth_preview(torch.tensor([[1.0, 8.0, 0.0]]), near=1, far=8).tolist()
        [[[122, 4, 3], [48, 18, 59], [0, 0, 0]]]
    """
    if depth.ndim != 2:
        raise ValueError(f"depth: expected [H, W], got {list(depth.shape)}")
    values = depth.detach().double().cpu().numpy()
    there = np.isfinite(values) & (values > 0)
    if not there.any():
        return np.zeros((*values.shape, 3), np.uint8)
    if near is None or far is None:
        low, high = np.percentile(values[there], [1, 99])
        near, far = near or float(low), far or float(high)
    span = max(math.log(far / near), 1e-6)
    scaled = np.log(np.where(there, values, near) / near) / span
    return color_map(1 - scaled.clip(0, 1)) * there[..., None].astype(np.uint8)
