"""What lies beyond all surfaces: the sky, remembered by direction alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from evoworld.geometry import Panorama

from .selection import Selection

MIN_WEIGHT = 1e-12  # steradians
HOLE_LEVELS = 3  # halvings of the resolution at which directions between those seen are looked up


class Background:
    """Sums of features over a panorama of world directions.

    A ray without depth adds its features to the 4 pixels around its direction; a query divides sums by weights, coarser
    ones where directions were seen too sparsely for the panorama's resolution.
    """

    def __init__(self, feature_dim: int, device: torch.device | str = "cpu"):
        self.sums = torch.zeros(0, 0, feature_dim + 1, device=device)  # [Hb, 2 Hb, C + 1], made by the first sky seen

    def observe(
        self,
        directions: Tensor,  # [R, 3] unit, world
        features: Tensor,  # [R, C + 1], the last one 1
        weight: Tensor,  # [R]
        height: int,
    ) -> None:
        """Adds rays that met nothing. The first ones fix the resolution: `height` rows."""
        if directions.shape[0] == 0:
            return
        if self.sums.numel() == 0:
            self.sums = self.sums.new_zeros(height, 2 * height, features.shape[1])
        rows, shares = _corners(directions, *self.sums.shape[:2])
        flat = self.sums.view(-1, self.sums.shape[-1])
        for row, share in zip(rows, shares, strict=True):
            flat.index_add_(0, row, features * (share * weight)[:, None])

    def sample(
        self,
        directions: Tensor,  # [R, 3] unit, world
    ) -> tuple[Tensor, Tensor]:  # [R, C], [R]
        """Features in the directions, and 1 where any were seen there (0 elsewhere)."""
        mean = directions.new_zeros(directions.shape[0], self.sums.shape[-1] - 1)
        seen = torch.zeros_like(directions[:, 0])
        if self.sums.numel() == 0:
            return mean, seen
        place = Panorama(1, 2).project(_camera_axes(directions))  # u in [0, 2), v in [0, 1]
        sums = self.sums.permute(2, 0, 1)[None]  # [1, C + 1, Hb, 2 Hb]
        for _ in range(HOLE_LEVELS + 1):
            left = Selection(seen == 0)
            if left.empty or sums.shape[2] < 2:
                break
            total = _bilinear(sums, left.take(place))
            weight = total[:, -1:]
            mean = left.put(mean, total[:, :-1] / weight.clamp_min(MIN_WEIGHT))
            seen = left.put(seen, (weight[:, 0] > MIN_WEIGHT).to(seen.dtype))
            sums = F.avg_pool2d(sums, 2)
        return mean, seen


def _bilinear(
    image: Tensor,  # [1, C, H, W]
    place: Tensor,  # [R, 2] from 0 to 2 over the columns, from 0 to 1 over the rows
) -> Tensor:  # [R, C]
    """A panorama's values between the centres of its pixels; wraps at the seam."""
    wide = torch.cat([image[..., -1:], image, image[..., :1]], dim=-1)
    width = image.shape[-1]
    u, v = place.unbind(-1)
    grid = torch.stack([(u * width + 2) / (width + 2) - 1, 2 * v - 1], dim=-1)  # -1 to 1 over all pixels of `wide`
    values = F.grid_sample(wide, grid[None, None], "bilinear", "border", align_corners=False)
    return values[0, :, 0].T.contiguous()


def _corners(directions: Tensor, height: int, width: int) -> tuple[list[Tensor], list[Tensor]]:
    """Rows of a flat panorama around each direction and their bilinear shares; wraps at the seam."""
    pixel = Panorama(height, width).project(_camera_axes(directions)) - 0.5
    u0, v0 = pixel.floor().unbind(-1)
    fu, fv = (pixel - pixel.floor()).unbind(-1)
    rows, shares = [], []
    for du, share_u in ((0, 1 - fu), (1, fu)):
        for dv, share_v in ((0, 1 - fv), (1, fv)):
            u = (u0 + du).long() % width
            v = (v0 + dv).long().clamp(0, height - 1)
            rows.append(v * width + u)
            shares.append(share_u * share_v)
    return rows, shares


def _camera_axes(directions: Tensor) -> Tensor:
    """World directions (z up) in the axes of a level camera (y down)."""
    x, y, z = directions.unbind(-1)
    return torch.stack([x, -z, y], -1)
