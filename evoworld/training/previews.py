"""Pictures of what a model makes while it trains, beside what it was given and what it should have made."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from evoworld.world.atomic import atomic_path
from evoworld.world.rgbd import decode_rgbd

GAP = 2  # pixels between panoramas
DEPTH_RANGE = 12.0  # metres that are drawn darkest


def depth_picture(depth: Tensor) -> Tensor:  # [..., H, W] -> [..., H, W, 3]
    """Depth in grey, near is bright; blue where nothing is."""
    grey = (1 - depth / DEPTH_RANGE).clamp(0.05, 1)[..., None].expand(*depth.shape, 3)
    return torch.where(depth[..., None] > 0, grey, grey.new_tensor((0.25, 0.4, 0.7)))


def preview_sheet(
    rows: Sequence[Tensor],  # each [T, H, W, 4]
    seen: Sequence[Tensor | None] = (),  # for each row [T, H, W] or None
) -> Tensor:  # [h, w, 3] 0..1
    """A sheet with a row of colours and one of depth for each of the RGB-D panoramas, their frames side by side.

    Where a row's `seen` is below 1/2 it is dark.

    Example:
        >>> preview_sheet([torch.zeros(2, 4, 8, 4)]).shape
        torch.Size([10, 18, 3])
    """
    strips = []
    for i, rgbd in enumerate(rows):
        image, depth = decode_rgbd(rgbd.detach().float().cpu())
        pictures = [image, depth_picture(depth)]
        mask = seen[i] if i < len(seen) else None
        if mask is not None:
            keep = (mask.detach().float().cpu() > 0.5)[..., None]
            pictures = [torch.where(keep, picture, 0.1) for picture in pictures]
        for picture in pictures:
            framed = F.pad(picture, (0, 0, 0, GAP, 0, GAP), value=1.0)  # white to the right and below
            strips.append(torch.cat(tuple(framed), 1)[:, :-GAP])
    return torch.cat(strips)[:-GAP]


def write_picture(path: str | os.PathLike, picture: Tensor) -> None:  # [H, W, 3] 0..1
    """Writes a PNG file, whole or not at all."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy()).save(temporary, format="PNG")
