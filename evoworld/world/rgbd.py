"""RGB-D as the networks see it: four channels of about -1 to 1, depth by its logarithm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NEAR, FAR = 0.25, 64.0  # metres that the depth codes -1 and 1 stand for
SKY = 0.9  # depth codes from here on (49 m) mean that nothing is there


def encode_rgbd(
    image: Tensor,  # [..., 3] 0..1
    depth: Tensor,  # [...] metres
) -> Tensor:  # [..., 4]
    """Colours as ``2 c - 1``, depth as ``2 log(d / NEAR) / log(FAR / NEAR) - 1`` within -1..1.

    Args:
        image: `[..., 3]`, 0 to 1.
        depth: `[...]`, metres along the ray; values that are not positive and finite are sky, code 1.

    Returns:
        `[..., 4]`. Gradients to image and, within the range, to depth.

    Example:
        >>> import torch
        >>> rgbd = encode_rgbd(torch.full((2, 3), 0.5), torch.tensor([4.0, 0.0]))
        >>> rgbd.tolist()
        [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    """
    there = torch.isfinite(depth) & (depth > 0)
    metres = torch.where(there, depth, FAR).clamp(NEAR, FAR)
    code = torch.log(metres / NEAR) * (2 / math.log(FAR / NEAR)) - 1
    return torch.cat((2 * image - 1, code[..., None]), -1)


def decode_rgbd(
    rgbd: Tensor,  # [..., 4]
) -> tuple[Tensor, Tensor]:  # [..., 3], [...]
    """The inverse of `encode_rgbd`: colours in 0..1, and metres, 0 where the code says sky.

    Example:
        >>> import torch
        >>> image, depth = decode_rgbd(encode_rgbd(torch.full((3,), 0.25), torch.tensor(2.0)))
        >>> image.tolist(), round(float(depth), 4)
        ([0.25, 0.25, 0.25], 2.0)
    """
    image, code = (0.5 * rgbd[..., :3] + 0.5).clamp(0, 1), rgbd[..., 3]
    metres = NEAR * torch.exp((code.clamp(-1, 1) + 1) * (0.5 * math.log(FAR / NEAR)))
    return image, torch.where(code > SKY, 0.0, metres)


def per_channel(
    weight: Tensor,  # [..., 2]
) -> Tensor:  # [..., 4]
    """One for each channel of RGB-D, from one for the colour and one for the depth."""
    return torch.cat((weight[..., :1].expand(*weight.shape[:-1], 3), weight[..., 1:]), -1)
