"""The memory reconstruction loss: what the learned memory alone is trained by."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from evoworld.geometry import Panorama

from .memory_networks import MemoryEncoderConfig
from .rgbd import FAR, NEAR, decode_rgbd

FREE = 1.5  # times the reach


class Reconstruction(NamedTuple):
    """Frames as the memory alone has them, a pixel a ray."""

    image: Tensor  # [T, h, w, 3] -1..1, as in RGB-D
    depth: Tensor  # [T, h, w] metres
    opacity: Tensor  # [T, h, w]


def reconstruction_loss(
    reconstruction: Reconstruction,
    rgbd: Tensor,  # [T, H, W, 4]
    reach: float = MemoryEncoderConfig.reach,
) -> dict[str, Tensor]:
    """The memory reconstruction loss at poses that were not observed, in parts; what is trained is their sum.

    Each ray looks between the pixels of a cell of the frame: its colour is the cell's mean, and its depth is right
    anywhere from the smallest to the largest of the cell. Rays count by their solid angle; colour and depth count by
    the opacity, as a ray that meets nothing says nothing about them. The memory is to be transparent towards the sky
    and what is too far away for it.

    Args:
        reconstruction: of the memory.
        rgbd: `[T, H, W, 4]`, the frames.
        reach: metres, of the memory: opacity is free where a surface lies beyond, up to `FREE` times it, as whether the
            memory holds that depends on where it was seen from.

    Returns:
        ``image``: squared error of the colours, in units of -1..1; ``depth``: error of the logarithm of depth, about
        the relative error; ``opacity``: squared error of the opacity, which is to be the share of the cell that is
        near enough.
    """
    image, depth, opacity = reconstruction
    cell = rgbd.shape[1] // image.shape[1]
    planes = rgbd.permute(0, 3, 1, 2)
    mean = F.avg_pool2d(planes[:, :3], cell).permute(0, 2, 3, 1)
    metres = decode_rgbd(rgbd)[1][:, None]
    solid = F.avg_pool2d((metres > 0).to(metres.dtype), cell)[:, 0]
    furthest = F.max_pool2d(metres, cell)[:, 0]
    nearest = -F.max_pool2d(-torch.where(metres > 0, metres, FAR), cell)[:, 0]
    area = Panorama(*image.shape[1:3]).solid_angle(image.dtype, image.device)
    area = (area / area.mean()).expand_as(opacity)
    seen = area * opacity.detach()
    near = torch.where(nearest > FREE * reach, 0.0, solid)
    certain = area * ((solid == 0) | (nearest < reach) | (nearest > FREE * reach))

    def log(x: Tensor) -> Tensor:
        return x.clamp(NEAR, FAR).log()

    too_far, too_near = log(depth) - log(furthest), log(nearest) - log(depth)
    depth_error = torch.where(solid > 0, too_far.maximum(too_near).clamp_min(0), 0.0)
    total = seen.sum().clamp_min(1e-3 * seen.numel())
    return {
        "image": (seen[..., None] * (image - mean).square()).sum() / (3 * total),
        "depth": (seen * depth_error).sum() / total,
        "opacity": (certain * (opacity - near).square()).mean(),
    }
