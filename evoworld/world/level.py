"""One resolution of the memory: a sparse grid with what was seen and where the surface lies, at one voxel size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from evoworld.geometry import SparseGrid
from evoworld.geometry.sparse_grid import PAGE_EDGE
from evoworld.ops import volume_render, voxel_scatter_

from .selection import Selection

STEPS_PER_VOXEL = 2  # samples along a ray
OPTICAL_DEPTH_PER_VOXEL = 8.0  # of solid matter: half the light is gone within a tenth of a voxel of the surface
RAMP = -0.1  # voxels: where density begins to rise, before interpolation between lattice points widens it by one
LAG = 0.2  # voxels: how far behind the surface light stops on average, given RAMP; 0.14 to 0.3 were measured
NEAR = 1e-3  # metres: where rays start
BAND = (-1, 0, 1)  # voxels before and behind a surface at which its distance is recorded: exact in between
CARVE_TRANSMITTANCE = 0.3  # a surface that stops this much light is enough to contradict a ray
MIN_WEIGHT = 1e-12  # steradians: below it a quotient of sums says nothing


class Rays(NamedTuple):
    """Rays with what was seen along them."""

    origins: Tensor  # [R, 3] metres
    directions: Tensor  # [R, 3] unit
    distance: Tensor  # [R] metres to what was seen; NaN: nothing to record
    weight: Tensor  # [R] steradians
    image_width: int = 0  # pixels in a row where they are an image's pixels, row by row; 0: they are not

    def select(self, rays: Selection) -> Rays:
        """Some of them; where all are kept, the others have to be told apart by the caller."""
        return Rays(*map(rays.take, self[:4]), rays.image_width(self.image_width))


class Shown(NamedTuple):
    """What is seen along rays."""

    mean: Tensor  # [R, C] average of the features seen, 0 where nothing was
    distance: Tensor  # [R] metres, 0 where nothing is
    opacity: Tensor  # [R]
    seen: Tensor  # [R] 1 where features were observed of what is shown


class LevelValues(NamedTuple):
    """What a level renders."""

    sums: Tensor  # [V, padding + C + 1] features times weight, and weight
    density: Tensor  # [V] per metre
    padding: int = 0  # channels before them that mean nothing


class Level:
    """Sums over all observations at the lattice points of one sparse grid.

    A surface point adds its features, weighted by its pixel's solid angle, to the 8 lattice points around it; rendering
    the sums and their weight along a ray and dividing gives the average, in which what was seen best counts most and
    lattice points that saw nothing do not count. The signed distance to the surface along the viewing rays is averaged
    alike (Curless and Levoy, "A volumetric method for building complex models from range images", 1996); density rises
    from 0 at the surface to its full value one voxel behind it.
    """

    def __init__(
        self,
        voxel_size: float,
        feature_dim: int,
        footprints: tuple[float, float] = (0.0, math.inf),
        device: torch.device | str = "cpu",
    ):
        self.grid = SparseGrid(voxel_size, device=device)
        self.footprints = footprints  # voxels: smallest and largest size of a pixel at the surface that the level takes
        self.reach = 0.0  # metres: the largest distance that was observed into this level
        self.dense_reach = 0.0  # metres: up to here pixels were no larger than a voxel, so that surfaces have no holes
        self.padding = row_padding(feature_dim + 1, device)
        self._storage = [
            torch.zeros(0, self.padding + feature_dim + 1, device=device),
            torch.zeros(0, device=device),
            torch.zeros(0, 1, device=device),
            torch.zeros(0, device=device),
        ]
        self._density: Tensor | None = None

    @property
    def voxel_size(self) -> float:
        return self.grid.voxel_size

    @property
    def sums(self) -> Tensor:  # [V, C + 1]
        return self._storage[0][: self.grid.num_voxels, self.padding :]

    @property
    def weight(self) -> Tensor:  # [V]
        return self._storage[1][: self.grid.num_voxels]

    @property
    def distance_sum(self) -> Tensor:  # [V, 1]
        return self._storage[2][: self.grid.num_voxels]

    @property
    def distance_weight(self) -> Tensor:  # [V]
        return self._storage[3][: self.grid.num_voxels]

    def tensors(self) -> dict[str, Tensor]:
        """What a file must hold of the level; `restore` takes it back."""
        return {
            "brick_coordinates": self.grid.brick_coordinates,
            "sums": self.sums,
            "weight": self.weight,
            "distance_sum": self.distance_sum,
            "distance_weight": self.distance_weight,
        }

    def restore(self, tensors: dict[str, Tensor], reach: float, dense_reach: float) -> None:
        """Takes over what `tensors` gave."""
        self.grid = SparseGrid.from_bricks(tensors["brick_coordinates"], self.voxel_size, self.grid.origin)
        sums = F.pad(tensors["sums"], (self.padding, 0)) if self.padding else tensors["sums"]
        self._storage = [sums, *(tensors[name] for name in ("weight", "distance_sum", "distance_weight"))]
        self.reach, self.dense_reach = reach, dense_reach
        self._density = None

    def fitting(
        self,
        distance: Tensor,  # [R] metres
        pixel_angle: float,
    ) -> Tensor:  # [R] metres
        """The distances at which pixels, `pixel_angle` radians wide, have a size that the level takes; others NaN."""
        least, most = (footprint * self.voxel_size / pixel_angle for footprint in self.footprints)
        return torch.where((distance >= least) & (distance < most), distance, math.nan)

    def observe(
        self,
        rays: Rays,
        features: Tensor,  # [R, padding + C + 1], the last one 1
        pixel_angle: float,
        reach: float,
    ) -> None:
        """Adds rays that are `fitting`, the furthest of which ends `reach` metres away."""
        self.reach = max(self.reach, reach)
        self.dense_reach = max(self.dense_reach, self.voxel_size / pixel_angle)
        offsets = [offset * self.voxel_size for offset in BAND]
        ends = [torch.addcmul(rays.origins, rays.directions, (rays.distance + s)[:, None]) for s in offsets]
        self.grid.merge(torch.cat(ends))
        self._make_room()
        self._scatter(self._storage[0][: self.grid.num_voxels], self.weight, features, rays.distance, rays)
        for offset in offsets:
            if offset != 0.0:  # the surface itself: distance 0, with the weight that its features have just added
                self._record(rays, rays.distance + offset, torch.full_like(rays.distance, -offset))

    def carve(self, rays: Rays, far: float) -> None:
        """Takes back what the rays, which see further, show not to be there.

        The level is rendered along the rays; where it stops light well before the distance seen, that place is recorded
        as lying before the surface. A passer-by seen once is gone once a ray has passed there with as much weight.
        `far`: metres, see `far`.
        """
        if self.grid.num_bricks == 0:
            return
        values = LevelValues(self.weight[:, None], self.density())
        shown = self.render(
            rays.origins, rays.directions, values, NEAR, far, CARVE_TRANSMITTANCE, image_width=rays.image_width
        )
        margin = 2.0 * self.voxel_size + 0.02 * shown.distance
        wrong = Selection((shown.opacity > 0.5) & (shown.distance + margin < rays.distance))
        self.clear(rays.select(wrong), wrong.take(shown.distance, math.nan))

    def clear(self, rays: Rays, at: Tensor) -> None:
        """Records that the rays passed freely `at` metres from their origins: that place lies before the surface."""
        if at.numel() and self.grid.num_bricks:
            before = torch.full_like(at, self.voxel_size)
            for offset in BAND:
                self._record(rays, at + offset * self.voxel_size, before)

    def render(
        self,
        origins: Tensor,  # [R, 3]
        directions: Tensor,  # [R, 3]
        values: LevelValues,
        near: float,
        far: float,
        min_transmittance: float = 1e-3,
        image_width: int = 0,
    ) -> Shown:
        """Renders values of the level's lattice points along rays, from `near` to `far` metres."""
        features, distance, opacity = volume_render(
            values.sums,
            values.density,
            origins,
            directions,
            self.grid,
            near,
            far,
            self.voxel_size / STEPS_PER_VOXEL,
            min_transmittance,
            image_width=image_width,
        )
        weight = features[:, -1:]
        mean = features[:, values.padding : -1] / weight.clamp_min(MIN_WEIGHT)
        distance = distance / opacity.clamp_min(1e-6) - LAG * self.voxel_size
        return Shown(mean, distance.clamp_min(0.0), opacity, (weight[:, 0] > 0).to(opacity.dtype))

    def values(self) -> LevelValues:
        """What `render` shows of what was observed."""
        return LevelValues(self._storage[0][: self.grid.num_voxels], self.density(), self.padding)

    def surface_distance(self) -> Tensor:  # [V] metres
        """Average signed distance of the lattice points to the surface, positive before it; infinite where unknown."""
        weight = self.distance_weight + self.weight
        return torch.where(weight > MIN_WEIGHT, self.distance_sum[:, 0] / weight.clamp_min(MIN_WEIGHT), math.inf)

    def density(self) -> Tensor:  # [V] per metre
        """Density of matter at the lattice points."""
        if self._density is None:
            self._density = density_of_distance(self.surface_distance(), self.voxel_size)
        return self._density

    def mean(self) -> Tensor:  # [V, C]
        """Average features of the lattice points."""
        return self.sums[:, :-1] / self.sums[:, -1:].clamp_min(MIN_WEIGHT)

    def replace(self, mean: Tensor, distance: Tensor) -> None:
        """Sets the average features [V, C] and signed distances [V], metres; weights, and what is unknown, stay."""
        torch.mul(mean, self.sums[:, -1:], out=self.sums[:, :-1])
        weight = self.distance_weight + self.weight
        self.distance_sum[:, 0] = torch.where(weight > MIN_WEIGHT, distance * weight, 0.0)
        self._density = None

    def _record(self, rays: Rays, at: Tensor, signed_distance: Tensor) -> None:
        """Adds signed distances [R] at the points `at` [R] metres along the rays."""
        self._scatter(self.distance_sum, self.distance_weight, signed_distance[:, None], at, rays)
        self._density = None

    def _scatter(self, sums: Tensor, weights: Tensor, values: Tensor, at: Tensor, rays: Rays) -> None:
        """Adds values to sums around the points `at` metres along the rays; NaN adds nothing."""
        voxel_scatter_(
            sums,
            weights,
            values,
            at,
            rays.origins,
            rays.directions,
            self.grid,
            rays.weight,
            image_width=rays.image_width,
        )

    def _make_room(self) -> None:
        needed = self.grid.num_voxels
        if needed <= self._storage[0].shape[0]:
            return
        capacity = max(needed, 2 * self._storage[0].shape[0])
        for i, old in enumerate(self._storage):
            self._storage[i] = old.new_zeros(capacity, *old.shape[1:])
            self._storage[i][: old.shape[0]] = old

    def far(self, low: Sequence[float], high: Sequence[float]) -> float:
        """A distance beyond everything in the grid, for rays that start in the box from `low` to `high`, metres.

        From the table's extent, which the host knows: its bricks' would have to be asked for.
        """
        if self.grid.num_bricks == 0:
            return NEAR
        page = PAGE_EDGE * self.grid.edge * self.voxel_size
        reach = [
            max((first + count) * page - start, stop - first * page)
            for first, count, start, stop in zip(
                self.grid.page_origin, self.grid.directory.shape, low, high, strict=True
            )
        ]
        return math.hypot(*(max(x, 0.0) for x in reach)) + self.voxel_size


def row_padding(channels: int, device: torch.device | str) -> int:
    """How many floats to put before rows of so many, so that GPUs load and add them 16 bytes at a time."""
    return 0 if torch.device(device).type == "cpu" else -channels % 4


def density_of_distance(
    distance: Tensor,  # metres, positive before the surface
    voxel_size: float,
) -> Tensor:  # per metre
    """Density at a signed distance: a ramp from RAMP to RAMP - 1 voxels."""
    return (RAMP - distance / voxel_size).clamp(0.0, 1.0) * (OPTICAL_DEPTH_PER_VOXEL / voxel_size)
