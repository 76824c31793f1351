"""What was written once, kept as it was seen: points with features and the size of the pixel that saw them."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from evoworld.geometry import Camera, Cubemap, Panorama, invert_pose, transform_points

SIZE = 3  # column of a point's size, after its position
SKY = 1000.0  # metres: where points without depth are put
SKY_FROM = 0.5 * SKY  # metres: what lies further is sky
BAND = 1.1  # times the nearest range in a pixel: points up to there belong to the same surface
CORE = 0.5  # of a point's reach: within it a pixel's centre lies surely on the point's surface
HIT = 0.002  # pixels: a point, not of the sky, that falls as near to a pixel's centre was seen from there
SHARPNESS = 1e-4  # pixels: a point that falls as near to a pixel's centre decides its features alone
REACH = 6.0  # pixels that a point covers at most to each side; those seen in larger ones are left to the voxels
SMALL = 2.0  # times its size: reach of a point smaller than a pixel, from half a pixel to one
DETAIL = 1.5  # pixels: what was seen in pixels larger than this is shown, but is less visible
ENOUGH = 4.0  # points to a pixel
GOLDEN = 2654435769  # 2^32 over the golden ratio: multiples of it are spread evenly over 32 bits
HIDDEN = 1.2  # times the range of the surface in front of a point, from where on the point is hidden
BESIDE = 4  # pixels around a point, in all of which the surface must stand: voxels are wider than things


class Splat(NamedTuple):
    """What the points show."""

    mean: Tensor  # [R, C]
    distance: Tensor  # [R] metres along the ray; SKY_FROM and more: sky; 0: no point
    visibility: Tensor  # [R] 1 where a point is, less where it was seen in much larger pixels, 0 elsewhere


class Surfels:
    """Points that are never moved or averaged: to a pose that saw them they show exactly what was seen.

    Voxels blur over their own size, which is a pixel or more in small panoramas. A point is spread over the pixels
    around its projection with weights ``(1 - |u| / a) (1 - |v| / b) / (a b sqrt(u^2 + v^2 + SHARPNESS^2))``: (u, v) the
    way from the projection to the pixel's centre, and (a, b) how far the pixel that saw the point reaches there, but
    about 1 at least; all in pixels. Of the points in a pixel those count that lie within BAND of the nearest.
    """

    def __init__(self, feature_dim: int, device: torch.device | str = "cpu"):
        self._rows = torch.zeros(0, 4 + feature_dim, device=device)  # with room for more
        self._count = 0

    @property
    def rows(self) -> Tensor:  # [P, 4 + C] position and size in metres, features
        return self._rows[: self._count]

    @rows.setter
    def rows(self, rows: Tensor) -> None:  # [P, 4 + C]
        self._rows, self._count = rows, rows.shape[0]

    @property
    def empty(self) -> bool:
        return self._count == 0

    def add(
        self,
        origins: Tensor,  # [R, 3] metres
        directions: Tensor,  # [R, 3] unit
        distance: Tensor,  # [R] metres; infinite: sky
        angle: Tensor,  # [R] radians, of the pixel
        features: Tensor,  # [R, C]
    ) -> None:
        """Adds the points that rays end at."""
        distance = distance.clamp(max=SKY)[:, None]
        new = torch.cat([torch.addcmul(origins, directions, distance), distance * angle[:, None], features], -1)
        needed = self._count + new.shape[0]
        if needed > self._rows.shape[0]:
            room = self._rows.new_zeros(max(needed, 2 * self._count), self._rows.shape[1])
            room[: self._count] = self.rows
            self._rows = room
        self._rows[self._count : needed] = new
        self._count = needed

    def render(
        self,
        camera: Camera,
        camera_to_world: Tensor,  # [4, 4]
        surface: Tensor,  # [H, W] metres along the ray, 0 where nothing is
        near: float = 0.0,
        sky: bool = True,
    ) -> Splat:
        """Shows the points to a camera, but for those within `near` metres of it and those that a surface hides."""
        rows, place, distance, pixel = self._project(camera, camera_to_world, near)
        there = distance >= 0 if sky else distance < SKY_FROM
        limit = _hidden_from(surface, isinstance(camera, Panorama)).flatten()
        hit = ((place - place.floor() - 0.5).square().sum(-1) < HIT**2) & (distance < SKY_FROM)
        size = (rows[:, SIZE] / distance)[:, None] / _pixel_angles(camera, distance.device)[pixel]  # [P, 2] pixels
        size = size.clamp_min(ENOUGH**-0.5)  # a point stands for those that were left out, too
        there &= (hit | (distance < limit[pixel])) & (size[:, 1] <= REACH)
        return _spread(camera, place[there], distance[there], size[there], rows[there, 4:])

    def holds(
        self,
        camera: Camera,
        camera_to_world: Tensor,  # [4, 4]
        surface: Tensor,  # [H, W] metres along the ray, SKY where nothing is
        largest: float,
    ) -> Tensor:  # [H, W] bool
        """In which pixels there is a point of this surface already, shown or not, seen in pixels up to `largest`."""
        rows, _, distance, pixel = self._project(camera, camera_to_world)
        size = rows[:, SIZE] / distance / _pixel_angles(camera, distance.device)[pixel, 1]
        ratio = distance / surface.flatten()[pixel]
        match = (size <= largest) & (ratio < BAND) & (ratio > 1 / BAND)
        result = torch.zeros_like(surface, dtype=torch.bool)
        result.view(-1)[pixel[match]] = True
        return result

    def _project(
        self,
        camera: Camera,
        camera_to_world: Tensor,  # [4, 4]
        near: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [P, 4 + C], [P, 2], [P] metres, [P]
        """The points that the image has, more than `near` metres away: rows, places, ranges and indices of pixels.

        Of points that were seen in much smaller pixels than the camera's about ENOUGH stand for a pixel, always the
        same: what a place costs to show does not grow with how closely it was looked at.
        """
        offset = self.rows[:, :3] - camera_to_world[:3, 3]
        away = offset.square().sum(-1)
        covered = self.rows[:, SIZE].square() / (away * _pixel_area(camera, camera_to_world, offset, away))
        order = (torch.arange(self._count, device=away.device) * GOLDEN % (1 << 32)).float() / (1 << 32)
        rows = self.rows[(ENOUGH * covered > order) & (away > near**2)]
        points = transform_points(invert_pose(camera_to_world), rows[:, :3])
        place, pixel, inside = pixels_of(points, camera)
        return rows[inside], place[inside], points[inside].norm(dim=-1), pixel[inside]


def pixels_of(points: Tensor, camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """Places [P, 2] in the image of points [P, 3] in the camera's axes, the pixels [P] around those, row by row, and
    which of them [P] the image has."""
    place = camera.project(points)
    u, v = place.nan_to_num(-1.0).unbind(-1)
    inside = (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    return place, torch.where(inside, v.long() * camera.width + u.long(), 0), inside


def _spread(
    camera: Camera,
    place: Tensor,  # [P, 2] (u, v) pixels
    distance: Tensor,  # [P]
    size: Tensor,  # [P, 2] pixels
    features: Tensor,  # [P, C]
) -> Splat:
    """Features and distances of points, averaged in the pixels that they reach."""
    reach = (SMALL * size).clamp(0.5, 1.0).maximum(size).clamp(max=max(camera.width / 4, REACH))
    first = (place - 0.5 - reach).ceil()  # pixels, whose centres the point reaches
    columns, rows = ((place - 0.5 + reach).floor() - first + 1).long().unbind(-1)
    detail = (DETAIL / size[:, 1]).clamp(max=1.0)
    table = torch.cat([place - 0.5, 1 / reach, first, distance[:, None], detail[:, None], features], -1)

    taps = columns * rows
    point = torch.repeat_interleave(taps)
    tap = torch.arange(point.shape[0], device=point.device) - (taps.cumsum(0) - taps)[point]
    row = torch.div(tap, columns[point], rounding_mode="floor")
    column = tap - row * columns[point]
    values = table[point]
    pixel = values[:, 4:6] + torch.stack([column, row], -1)
    offset = pixel - values[:, :2]
    share = (offset * values[:, 2:4]).abs()
    index, there = _image_index(camera, pixel, values[:, :2])
    there &= (share < 1).all(-1)

    ranges = values[:, 6]
    squared = offset.square().sum(-1)
    nearest = _least(ranges, index, there & (share <= CORE).all(-1), camera.num_rays)
    seen = _least(ranges, index, there & (squared < HIT**2) & (ranges < SKY_FROM), camera.num_rays)
    nearest = torch.where(seen.isfinite(), seen, nearest)
    surface = nearest[index]
    there &= (ranges <= BAND * surface) & (ranges >= surface / BAND)
    weight = (1 - share).prod(-1) * values[:, 2:4].prod(-1) * (squared + SHARPNESS**2).rsqrt()
    weight = torch.where(there, weight, 0.0)[:, None]
    sums = table.new_zeros(camera.num_rays, table.shape[1] - 5)
    sums.index_add_(0, index, torch.cat([values[:, 6:], torch.ones_like(weight)], -1) * weight)
    mean = sums[:, :-1] / sums[:, -1:].clamp_min(1e-12)
    return Splat(mean[:, 2:], mean[:, 0], mean[:, 1])


def _image_index(camera: Camera, pixel: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:  # [N, 2] -> [N], [N]
    """Row-major indices of pixels (u, v), and which of them the image has, beside their points' own places."""
    u, v = pixel.unbind(-1)
    there = (v >= 0) & (v < camera.height)
    if isinstance(camera, Panorama):
        u = torch.where(u < 0, u + camera.width, torch.where(u >= camera.width, u - camera.width, u))
    elif isinstance(camera, Cubemap):
        there &= (u / camera.size).floor() == ((place[:, 0] + 0.5) / camera.size).floor()
    else:
        there &= (u >= 0) & (u < camera.width)
    return torch.where(there, v.long() * camera.width + u.long(), 0), there


def _least(values: Tensor, index: Tensor, mask: Tensor, size: int) -> Tensor:  # [N], [N], [N] -> [size]
    """The least of the values at each index; infinite where there is none."""
    masked = torch.where(mask, values, math.inf)
    return torch.full((size,), math.inf, device=values.device).scatter_reduce_(0, index, masked, "amin")


def _hidden_from(surface: Tensor, wraps: bool) -> Tensor:  # [H, W] -> [H, W] metres
    """The range from which on points are hidden by surfaces in front of them and of all pixels around."""
    limit = torch.where(surface > 0, surface, math.inf)
    return -HIDDEN * least_around(-limit, min(BESIDE, limit.shape[1]), wraps)


def least_around(image: Tensor, radius: int, wraps: bool) -> Tensor:  # [H, W] -> [H, W]
    """The least value within a square of so many pixels to each side, across the seam of an image that wraps."""
    beside = radius if wraps else 0
    wide = torch.cat([image[:, image.shape[1] - beside :], image, image[:, :beside]], 1)
    padding = (radius, 0 if wraps else radius)
    return -F.max_pool2d(-wide[None], 2 * radius + 1, stride=1, padding=padding)[0]


def _pixel_area(
    camera: Camera,
    camera_to_world: Tensor,  # [4, 4]
    offset: Tensor,  # [P, 3] metres, of points from the camera
    squared: Tensor,  # [P] its square
) -> Tensor | float:  # [P]
    """Steradians of the pixels in which a camera sees points; of the smallest one where those differ little."""
    if not isinstance(camera, Panorama):
        return _least_area(camera)
    sine = (1 - (offset @ camera_to_world[:3, 1]).square() / squared).clamp_min(0).sqrt()
    return (sine * (math.pi / camera.height) ** 2).clamp_min(_least_area(camera))


@lru_cache(maxsize=8)
def _least_area(camera: Camera) -> float:
    return float(camera.solid_angle().amin())


@lru_cache(maxsize=8)
def _pixel_angles(camera: Camera, device: torch.device) -> Tensor:  # [R, 2]
    """Width and height of each pixel in radians."""
    with torch.inference_mode(False):
        if isinstance(camera, Panorama):
            down = torch.full((camera.height, camera.width), math.pi / camera.height)
            across = camera.solid_angle() / down
        else:
            across = down = camera.solid_angle().sqrt()
        return torch.stack([across.flatten(), down.flatten()], -1).to(device)
