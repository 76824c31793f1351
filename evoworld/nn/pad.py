"""Padding of equirectangular images [..., H, W] by what lies beyond their edges on the sphere."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Padding = int | Sequence[int]


def spherical_pad(
    image: Tensor,  # [..., H, W]
    padding: Padding,
) -> Tensor:  # [..., top + H + bottom, left + W + right]
    """Continues an equirectangular image over the seam and over the poles.

    Left of column 0 lies column W - 1. Above row 0 the meridian goes on, over the pole and down on the other side:
    row -1 is row 0 half a turn further, row -2 is row 1 half a turn further, and so on; the south alike.
    Values are carried over unchanged: the components of a vector field along east and north would change sign.

    Args:
        image: [..., H, W], any dtype and memory format; rows from the north pole to the south pole, columns all around.
        padding: pixels on every side, or (left, right, top, bottom) as in torch.nn.functional.pad; none negative.
            Left and right up to W, top and bottom up to H.

    Returns:
        [..., top + H + bottom, left + W + right]; gradients to image, of every order.

    Raises:
        ValueError: padding is none of these, or rows are asked for beyond a pole and W is odd.

    >>> spherical_pad(torch.arange(8).reshape(2, 4), 1)
    tensor([[1, 2, 3, 0, 1, 2],
            [3, 0, 1, 2, 3, 0],
            [7, 4, 5, 6, 7, 4],
            [5, 6, 7, 4, 5, 6]])
    """
    left, right, top, bottom = _four(padding)
    if image.ndim < 2:
        raise ValueError(f"image: expected [..., H, W], got {list(image.shape)}")
    height, width = image.shape[-2:]
    if max(left, right) > width or max(top, bottom) > height:
        raise ValueError(
            f"padding: left and right up to the width {width}, top and bottom up to the height {height}, "
            f"got {(left, right, top, bottom)}"
        )
    if top or bottom:
        if width % 2:
            raise ValueError(
                f"image: what lies over a pole is half a turn away, which takes an even width, got {width}: resize the "
                f"image to {width - 1} or {width + 1} columns, or pad its left and right only"
            )
        beyond = []
        for rows in (image[..., :top, :], image[..., height - bottom :, :]):
            rows = rows.flip(-2)
            beyond.append(torch.cat((rows[..., width // 2 :], rows[..., : width // 2]), -1))
        image = torch.cat((beyond[0], image, beyond[1]), -2)
    if left or right:
        image = torch.cat((image[..., width - left :], image, image[..., :right]), -1)
    return image


class SphericalPad2d(nn.Module):
    """Pads equirectangular images as `spherical_pad` does: circular in longitude, a half-turn over the poles.

    Takes the place of ZeroPad2d, ReflectionPad2d, ReplicationPad2d and CircularPad2d, with their argument.

    Args:
        padding: pixels on every side, or (left, right, top, bottom).

    Raises:
        ValueError: padding is neither; on a call, an odd width where rows beyond a pole are asked for.

    >>> SphericalPad2d((2, 1, 0, 0))(torch.arange(4).reshape(1, 4))
    tensor([[2, 3, 0, 1, 2, 3, 0]])
    """

    def __init__(self, padding: Padding):
        super().__init__()
        self.padding = _four(padding)

    def forward(
        self,
        image: Tensor,  # [..., H, W]
    ) -> Tensor:  # [..., top + H + bottom, left + W + right]
        return spherical_pad(image, self.padding)

    def extra_repr(self) -> str:
        return str(self.padding)


def _four(padding: Padding) -> tuple[int, int, int, int]:
    try:
        sides = tuple(map(operator.index, padding)) if isinstance(padding, Sequence) else (operator.index(padding),) * 4
    except TypeError:
        sides = ()
    if len(sides) != 4 or min(sides) < 0:
        raise ValueError(
            f"padding: expected a number of pixels or (left, right, top, bottom), none negative; got {padding!r}"
        )
    return sides
