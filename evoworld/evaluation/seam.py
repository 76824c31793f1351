"""Whether a panorama shows where its image begins and ends."""

from __future__ import annotations

import math

from torch import Tensor


def seam_ratio(
    image: Tensor,  # [..., H, W, C]
) -> float:
    """The mean gradient across the seam over the mean gradient between all other neighbouring columns.

    `r = mean |x_0 - x_(W-1)| / mean_u |x_(u+1) - x_u|`, means over all pictures, rows and channels. 1 in the mean for
    panoramas that are seamless; of a single picture it depends on what happens to stand there.

    Args:
        image: `[..., H, W, C]` with W at least 2, any scale.

    Returns:
        The ratio; 1 where nothing changes anywhere, infinity where it changes at the seam only. No gradient.

    Raises:
        ValueError: another shape.

    >>> import torch
    >>> ramp = torch.arange(8.0).view(1, 8, 1).expand(4, 8, 3)
    >>> seam_ratio(ramp)  # 7 across the seam, 1 elsewhere
    7.0
    """
    across, inside = seam_gradients(image)
    if inside == 0:
        return 1.0 if across == 0 else math.inf
    return across / inside


def seam_gradients(image: Tensor) -> tuple[float, float]:  # [..., H, W, C]
    """The two means of `seam_ratio`: across the seam, and between the other neighbouring columns."""
    if image.ndim < 3 or image.shape[-2] < 2:
        raise ValueError(f"image: expected [..., H, W, C] with W at least 2, got {list(image.shape)}")
    difference = (image.double().roll(-1, -2) - image.double()).abs()
    return difference[..., -1, :].mean().item(), difference[..., :-1, :].mean().item()
