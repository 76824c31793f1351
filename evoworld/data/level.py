"""Panoramas of any orientation and size made level, of a given yaw and height."""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate

from evoworld.geometry import Panorama, rotate, rotate_panorama, sample_panorama

_SAME = 1e-6  # of a rotation matrix's entries


def level_panorama(
    image: torch.Tensor,  # [H', 2H', 3]
    depth: torch.Tensor | None,  # [H', 2H'] metres
    rotation: torch.Tensor,  # [3, 3]
    height: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # [H, 2H, 3], [H, 2H]
    """A panorama as a camera turned by ``rotation`` sees it, H rows high.

    Colours are averaged over the area of each pixel, depths taken at its centre, where they are true.

    Args:
        image: colours.
        depth: range along the ray, which a turn does not change; None if it is not known.
        rotation: turns a direction of the result into one of the input.
        height: H.

    Example:
        >>> image, depth = level_panorama(torch.rand(8, 16, 3), torch.ones(8, 16), torch.eye(3), height=4)
        >>> image.shape, depth.shape
        (torch.Size([4, 8, 3]), torch.Size([4, 8]))
    """
    if (rotation - torch.eye(3)).abs().max() > _SAME:
        image = rotate_panorama(image, rotation)
    if len(image) > height:
        image = interpolate(image.permute(2, 0, 1)[None], (height, 2 * height), mode="area")[0].permute(1, 2, 0)
    directions = Panorama(height, 2 * height).directions().view(height, 2 * height, 3)
    if len(image) < height:
        image = sample_panorama(image, directions)
    if depth is not None:
        depth = sample_panorama(depth, rotate(rotation, directions), "nearest")
    return image.contiguous(), depth
