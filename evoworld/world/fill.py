"""Holes of an RGB-D panorama filled from around them, without a network: push-pull on the sphere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from evoworld.nn.pad import spherical_pad

from .rgbd import per_channel

HALVINGS = 2  # of the size: rolling by 4 columns, the smallest token, rolls the result
SURE = 16.0  # times the share of known pixels around: above 1 their mean is taken as it is, not that of more
NARROW = 1  # pixels of the halved size: in holes no wider than about twice that the far counts more
AMONG = 0.4  # share of the pixels around that are seen, from which on a pixel lies among them
FAR_FIRST = 4.0  # what lies e times as far counts e^(4 * 0.36) = 4 times as much: what is uncovered lies behind


def fill_rgbd(
    rgbd: Tensor,  # [..., H, W, 4]
    visibility: Tensor,  # [..., H, W] or [..., H, W, 2] 0..1
) -> Tensor:  # [..., H, W, 4]
    """Fills what is not visible from the visible around it, coarser the wider the hole.

    Narrow holes open beside near things, in what lies behind them: there the far counts more, by
    ``exp(FAR_FIRST * depth code)``.

    Args:
        rgbd: `[..., H, W, 4]`, as by `encode_rgbd`.
        visibility: `[..., H, W]`, or `[..., H, W, 2]` with one of the colours and one of the depth.

    Returns:
        `[..., H, W, 4]`: `rgbd` where visibility is 1; mid-grey at mid-depth if nothing is visible. Gradients to rgbd.

    Source: Gortler, Grzeszczuk, Szeliski and Cohen 1996, "The lumigraph", section 3.4.

    Example:
        >>> rgbd, visibility = torch.zeros(4, 8, 4), torch.ones(4, 8)
        >>> rgbd[1, 3], visibility[1, 3] = 0.9, 0.0
        >>> fill_rgbd(rgbd, visibility)[1, 3].tolist()
        [0.0, 0.0, 0.0, 0.0]
    """
    if visibility.ndim == rgbd.ndim - 1:
        visibility = torch.stack((visibility, visibility), -1)
    batch, (height, width) = rgbd.shape[:-3], rgbd.shape[-3:-1]
    share = per_channel(visibility.clamp(0, 1))
    code = torch.where(visibility[..., 1:] > 0, rgbd[..., 3:].detach(), 0.0)
    weight = share * torch.exp(FAR_FIRST * (code - 1))
    planes, share, weight = (x.reshape(-1, height, width, 4).permute(0, 3, 1, 2) for x in (rgbd, share, weight))
    filled = pull_push(planes, share, weight)
    return filled.permute(0, 2, 3, 1).reshape(*batch, height, width, 4)


def among_seen(
    seen: Tensor,  # [B, T, H, W, 2] 0..1
    radius: int,
) -> Tensor:  # [B, T, H, W, 2] bool
    """Which pixels lie among seen ones: of the square of 2 radius + 1 pixels around them the share AMONG is seen.

    Args:
        seen: `[B, T, H, W, 2]`, of the colour and of the depth.
        radius: pixels.

    Example:
        >>> seen = torch.ones(1, 1, 8, 16, 2)
        >>> seen[..., :1, :] = 0  # a hole of one column
        >>> seen[..., 6:13, :] = 0  # one of seven
        >>> among_seen(seen, 1)[0, 0, 4, :, 0].long().tolist()
        [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1]
    """
    planes = spherical_pad((seen > 0.5).to(seen).flatten(0, 1).movedim(-1, 1), radius)
    share = F.avg_pool2d(planes, 2 * radius + 1, stride=1).movedim(1, -1).unflatten(0, seen.shape[:2])
    return share >= AMONG


def pull_push(
    planes: Tensor,  # [B, C, H, W]
    share: Tensor,  # [B, C or 1, H, W] 0..1
    weight: Tensor | None = None,  # as share
    wraps: bool = True,
    halvings: int = HALVINGS,
) -> Tensor:  # [B, C, H, W]
    """``share * planes + (1 - share) * coarse``, the coarse plane being made alike of weighted means around each pixel.

    The first means are of 2 x 2 pixels, at half the size; then the size stays and the reach doubles, so that rolling
    the planes by ``2 ** halvings`` columns rolls the result.

    Args:
        planes: `[B, C, H, W]`; meaningless where the share is 0.
        share: `[B, C or 1, H, W]`: how well each pixel is known.
        weight: how much it counts for others in narrow holes, 0 where the share is 0; None: the share.
        wraps: whether the last column lies beside the first.
        halvings: of the size.

    Returns:
        `[B, C, H, W]`; 0 everywhere if nothing is known. Gradients to planes.

    Source: Gortler, Grzeszczuk, Szeliski and Cohen 1996, "The lumigraph", section 3.4; the undecimated pyramid is that
    of Holschneider et al. 1989, "A real-time algorithm for signal analysis with the help of the wavelet transform".

    Example:
        >>> row, known = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
        >>> pull_push(row, known).flatten().tolist()
        [1.0, 1.0]
    """
    weight = share if weight is None else weight
    planes = torch.where(share > 0, planes, 0.0)
    height, width = planes.shape[-2:]
    if halvings == 0 or height < 2 or width < 2:
        return _fill_coarse(planes, share, weight, wraps)
    total = F.avg_pool2d(weight, 2, ceil_mode=True)
    mean = _divide(F.avg_pool2d(planes * weight, 2, ceil_mode=True), total)
    known = (4 * F.avg_pool2d(share, 2, ceil_mode=True)).clamp(max=1)
    coarse = pull_push(mean, known, total, wraps, halvings - 1)
    if wraps:
        coarse = F.pad(coarse, (1, 1, 0, 0), mode="circular")
    coarse = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    first = 2 if wraps else 0
    return torch.lerp(coarse[..., :height, first : first + width], planes, share)


def _fill_coarse(planes: Tensor, share: Tensor, weight: Tensor, wraps: bool) -> Tensor:  # [B, C, H, W] all
    """The same at one size, with means that reach further and further."""
    height, width = planes.shape[-2:]
    levels, plain, weighted = [(planes, share)], (planes * share, share), (planes * weight, weight)
    step = 1
    while step < max(height, width):
        plain, weighted = ([_spread(x, step, wraps) for x in pair] for pair in (plain, weighted))
        levels.append((_divide(*(weighted if step <= NARROW else plain)), (SURE * plain[1]).clamp(max=1)))
        step *= 2
    filled = _divide(*(x.mean((-2, -1), keepdim=True) for x in plain))
    for mean, known in reversed(levels):
        filled = torch.lerp(filled.expand_as(mean), mean, known.expand_as(mean))
    return filled


def _spread(x: Tensor, step: int, wraps: bool) -> Tensor:  # [B, C, H, W]
    """Weighted means (1, 2, 1) / 4 of pixels `step` apart, down and across; beyond the edge lies 0."""
    above, below = (_shifted(x, n, -2) for n in (step, -step))
    x = 0.5 * x + 0.25 * (above + below)
    left, right = (x.roll(n, -1) if wraps else _shifted(x, n, -1) for n in (step, -step))
    return 0.5 * x + 0.25 * (left + right)


def _shifted(x: Tensor, step: int, dim: int) -> Tensor:
    size = x.shape[dim]
    before, after = (min(max(n, 0), size) for n in (step, -step))
    kept = x.narrow(dim, after, size - before - after)
    return F.pad(kept, (before, after) if dim == -1 else (0, 0, before, after))


def _divide(sums: Tensor, weight: Tensor) -> Tensor:
    return sums / weight.clamp_min(torch.finfo(weight.dtype).tiny)
