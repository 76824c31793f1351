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
HIT = 0.02  # pixels: a point, not of the sky, that falls as near to a pixel's centre was seen from there
SHARPNESS = 0.02  # pixels: a point that falls as near to a pixel's centre decides its features alone
REACH = 6.0  # pixels that a point covers at most to each side; those seen in larger ones are left to the voxels
SMALL = 2.0  # times its size: reach of a point smaller than a pixel, from half a pixel to one
DETAIL = 1.5  # pixels: what was seen in pixels larger than this is shown, but is less visible
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
    around its projection with the weights ``(1 - |u| / a) (1 - |v| / b) / (a b (u^2 + v^2 + SHARPNESS^2))``: (u, v) the
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
        sky: bool = True,
    ) -> Splat:
        """Shows the points to a camera, but for those that a surface hides."""
        place, distance, pixel, inside = self._project(camera, camera_to_world)
        if not sky:
            inside &= distance < SKY_FROM
        limit = _hidden_from(surface, isinstance(camera, Panorama)).flatten()
        hit = ((place - place.floor() - 0.5).square().sum(-1) < HIT**2) & (distance < SKY_FROM)
        kept = (inside & (hit | (distance < limit[pixel]))).nonzero()[:, 0]
        rows, pixel, distance = self.rows[kept], pixel[kept], distance[kept]
        size = (rows[:, SIZE] / distance)[:, None] / _pixel_angles(camera, distance.device)[pixel]  # [P, 2] pixels
        sharp = size[:, 1] <= REACH
        return _spread(camera, place[kept][sharp], distance[sharp], size[sharp], rows[sharp, 4:])

    def holds(
        self,
        camera: Camera,
        camera_to_world: Tensor,  # [4, 4]
        surface: Tensor,  # [H, W] metres along the ray, SKY where nothing is
        largest: float,
    ) -> Tensor:  # [H, W] bool
        """In which pixels there is a point of this surface already, shown or not, seen in pixels up to `largest`."""
        _, distance, pixel, inside = self._project(camera, camera_to_world)
        size = self.rows[:, SIZE] / distance / _pixel_angles(camera, distance.device)[pixel, 1]
        ratio = distance / surface.flatten()[pixel]
        match = inside & (size <= largest) & (ratio < BAND) & (ratio > 1 / BAND)
        result = torch.zeros_like(surface, dtype=torch.bool)
        result.view(-1)[pixel[match]] = True
        return result

    def _project(self, camera: Camera, camera_to_world: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Places [P, 2], ranges [P], indices of pixels [P], and which points the image has [P]."""
        points = transform_points(invert_pose(camera_to_world), self.rows[:, :3])
        distance = points.norm(dim=-1)
        place = camera.project(points)
        u, v = place.nan_to_num(-1.0).unbind(-1)
        inside = (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height) & (distance > 0)
        return place, distance, torch.where(inside, v.long() * camera.width + u.long(), 0), inside


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
    weight = (1 - share).prod(-1) * values[:, 2:4].prod(-1) / (squared + SHARPNESS**2)
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
    n = min(BESIDE, limit.shape[1])
    if wraps:
        limit = torch.cat([limit[:, -n:], limit, limit[:, :n]], 1)
    limit = F.max_pool2d(limit[None], 2 * n + 1, stride=1, padding=(n, 0 if wraps else n))[0]
    return HIDDEN * limit


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
