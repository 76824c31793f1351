"""The peer without a memory: the coloured points of the observed frames, projected into a new camera."""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from evoworld.geometry import Camera, invert_pose, transform_points
from evoworld.world.fill import pull_push

# No point has landed in the pixel: above every key, because the bits of a positive finite float32 stay below it.
EMPTY = torch.iinfo(torch.int64).max
INDEX_BITS = 32


class Reprojection(NamedTuple):
    """What `reproject_points` returns."""

    image: Tensor  # [H, W, C]
    depth: Tensor  # [H, W]
    mask: Tensor  # [H, W]


class _Frame(Protocol):
    image: Tensor  # [H, W, C]
    depth: Tensor | None  # [H, W]
    camera_to_world: Tensor  # [4, 4]
    camera: Camera


def reproject_points(frames: Iterable[_Frame], camera: Camera, camera_to_world: Tensor) -> Reprojection:
    """Project every observed pixel's coloured 3D point into a camera; the nearest point of a pixel wins.

    `p = o + t d` for each observed pixel with depth, then `(u, v) = project(world_to_camera p)`, rounded to the pixel
    that holds it, with a z-buffer over the distance to the camera. Nothing is filled: a pixel without a point is black.

    Args:
        frames: the observed frames, each with `image [H, W, C]` in 0..1, `depth [H, W]` in metres (0: nothing there),
            `camera_to_world [4, 4]` and `camera`.
        camera: the camera to fill, for instance `evoworld.geometry.Panorama(256, 512)`.
        camera_to_world: `[4, 4]`, its pose.

    Returns:
        `Reprojection(image [H, W, C], depth [H, W], mask [H, W])`: colour, distance along the ray in metres (0 without
        a point), and whether a point landed there. No gradient. Equal distances: the earlier point wins.

    Raises:
        ValueError: there is no frame, or a frame has no depth.

    Source: the point-cloud condition of the EvoWorld pipeline, "EvoWorld: evolving panoramic world generation with
    explicit 3D memory".

    >>> from types import SimpleNamespace
    >>> from evoworld.geometry import Panorama
    >>> camera, pose, image = Panorama(8, 16), torch.eye(4), torch.rand(8, 16, 3)
    >>> frame = SimpleNamespace(image=image, depth=torch.ones(8, 16), camera_to_world=pose, camera=camera)
    >>> torch.equal(reproject_points([frame], camera, pose).image, image)
    True
    """
    nearest = torch.full((camera.height * camera.width,), EMPTY, dtype=torch.int64)
    world_to_camera = invert_pose(camera_to_world)
    colours, first = [], 0
    for frame in frames:
        pixel, distance, colour = _project_frame(frame, camera, world_to_camera)
        key = (distance.view(torch.int32).long() << INDEX_BITS) | (first + torch.arange(len(distance)))
        nearest.scatter_reduce_(0, pixel, key, "amin")
        colours.append(colour)
        first += len(distance)
    if not colours:
        raise ValueError("frames: expected at least one observed frame, got none")

    mask = nearest != EMPTY
    image = torch.zeros(camera.height * camera.width, colours[0].shape[-1])
    depth = torch.zeros(camera.height * camera.width)
    image[mask] = torch.cat(colours)[nearest[mask] & ((1 << INDEX_BITS) - 1)]
    depth[mask] = (nearest[mask] >> INDEX_BITS).int().view(torch.float32)
    shape = (camera.height, camera.width)
    return Reprojection(image.view(*shape, -1), depth.view(shape), mask.view(shape))


def fill_holes(
    image: Tensor,  # [H, W, C]
    mask: Tensor,  # [H, W]
) -> Tensor:
    """Fill the pixels outside the mask from the known ones around them, coarser the wider the hole (pull-push).

    A hole takes the value of a coarser level, the mean of what is known around it (`evoworld.world.fill.pull_push`).
    Not part of the peer: it tells how much of the peer's error is holes.

    Args:
        image: `[H, W, C]`.
        mask: `[H, W]` bool, True where the image is known.

    Returns:
        `[H, W, C]`: the image itself inside the mask; zero everywhere when nothing is known. No gradient.

    Source: Gortler, Grzeszczuk, Szeliski and Cohen 1996, "The lumigraph", section 3.4.

    >>> fill_holes(torch.tensor([[[1.0], [0.0]]]), torch.tensor([[True, False]])).flatten().tolist()
    [1.0, 1.0]
    """
    known = mask.to(image.dtype)[None, None]
    return pull_push(image.permute(2, 0, 1)[None], known, wraps=False)[0].permute(1, 2, 0)


def _project_frame(frame: _Frame, camera: Camera, world_to_camera: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if frame.depth is None:
        raise ValueError("frames: expected depth in every observed frame, got one without")
    distance = frame.camera.range_from_depth(frame.depth).flatten()
    there = torch.isfinite(distance) & (distance > 0)
    origins, directions = frame.camera.rays(frame.camera_to_world)
    points = transform_points(world_to_camera, origins[there] + distance[there, None] * directions[there])
    coordinates = camera.project(points).floor()  # a pixel's centre is at + 0.5, so floor rounds to the nearest
    u, v = coordinates.unbind(-1)
    visible = (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)  # false for NaN: out of view
    pixel = (v[visible] * camera.width + u[visible]).long()
    colour = frame.image.flatten(0, 1)[there]
    return pixel, points[visible].norm(dim=-1), colour[visible]
