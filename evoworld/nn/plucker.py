"""Where a panorama was taken, as each of its pixels sees it: Pluecker coordinates of rays in the pixels' own frames."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evoworld.ops.library import check, check_tensor

RAY_CHANNELS = 6


def ray_embedding(
    height: int,
    width: int,
    position: Tensor,  # [..., 3]
) -> Tensor:  # [..., H, W, 6]
    """The ray of each pixel of a level panorama that stands at a position, in coordinates that know no yaw.

    A ray through o along d has the Pluecker coordinates (d, o x d). Here they are expressed in the frame of its pixel:
    d points forward, e east (along the image's row) and n north (up its column), so that with the pixel's latitude::

        embedding = [sin(latitude), cos(latitude), s (o x d) . e, s (o x d) . n, s o . d, s |o|],  s = asinh(|o|) / |o|

    The first two say where up is; the next three are all of o, as seen from the pixel (o x d has no part along d), and
    distances are compressed: metres nearby, logarithms far away. Turning the panorama and its axes about the vertical
    by whole pixels rolls the embedding.

    Args:
        height, width: of the panorama in pixels, or of its tokens, any proportion.
        position: `[..., 3]` o, metres, relative to whatever all poses are relative to; x right, y down, z forward in
            the axes of the panorama.

    Returns:
        `[..., H, W, 6]` in the dtype of position. Gradients to position, finite at 0 too.

    Raises:
        ValueError: height or width below 1, a position of another shape.

    Source: Pluecker coordinates as a camera's embedding, Sitzmann et al. 2021, "Light field networks", section 3.

    Example:
        >>> embedding = ray_embedding(2, 4, torch.tensor([0.0, 0.0, 1.0]))  # a metre ahead of where the axes are
        >>> embedding.shape
        torch.Size([2, 4, 6])
        >>> [round(x, 3) for x in embedding[0, 0].tolist()]  # looks up, back and to the left
        [0.707, 0.707, -0.441, 0.623, -0.441, 0.881]
    """
    op = "ray_embedding"
    for name, value in (("height", height), ("width", width)):
        check(op, value >= 1, name, "at least 1", value)
    check_tensor(op, "position", position, (*["..."] * (position.ndim - 1), 3))
    forward, east, north = local_frames(height, width, position)
    distance = torch.linalg.vector_norm(position, dim=-1, keepdim=True)  # [..., 1]
    away = distance > 0
    scale = torch.where(away, torch.asinh(distance) / torch.where(away, distance, 1), 1)
    offset = (position * scale)[..., None, None, :]  # [..., 1, 1, 3]
    # (o x d) . e = o . (d x e) = -o . n, and (o x d) . n = o . e.
    seen = [-(offset * north).sum(-1), (offset * east).sum(-1), (offset * forward).sum(-1)]
    vertical, level = -forward[..., 1], torch.linalg.vector_norm(forward[..., ::2], dim=-1)
    length = (distance * scale)[..., None]  # [..., 1, 1]
    shape = seen[0].shape
    return torch.stack([x.expand(shape) for x in (vertical, level, *seen, length)], -1)


def local_frames(
    height: int, width: int, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:  # [H, W, 3], [H, W, 3], [H, W, 3]
    """Unit vectors forward, east and north of each pixel, in camera axes."""
    exact = torch.float32 if like.device.type == "mps" else torch.float64  # Metal has no float64
    rows, columns = (torch.arange(n, device=like.device, dtype=exact) + 0.5 for n in (height, width))
    longitude, latitude = (columns / width - 0.5) * (2 * math.pi), (0.5 - rows / height) * math.pi
    latitude, longitude = torch.meshgrid(latitude, longitude, indexing="ij")
    zero = torch.zeros_like(latitude)
    forward = latitude.cos() * longitude.sin(), -latitude.sin(), latitude.cos() * longitude.cos()
    east = longitude.cos(), zero, -longitude.sin()
    north = -latitude.sin() * longitude.sin(), -latitude.cos(), -latitude.sin() * longitude.cos()
    return tuple(torch.stack(vector, -1).to(like.dtype) for vector in (forward, east, north))
