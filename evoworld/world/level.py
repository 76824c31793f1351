"""One resolution of the memory: a sparse grid with what was seen and where the surface lies, at one voxel size."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from evoworld.geometry import SparseGrid
from evoworld.ops import volume_render, voxel_scatter_

STEPS_PER_VOXEL = 2  # samples along a ray
OPTICAL_DEPTH_PER_VOXEL = 8.0  # of solid matter: half the light is gone within a tenth of a voxel of the surface
RAMP = -0.1  # voxels: where density begins to rise, before interpolation between lattice points widens it by one
NEAR = 1e-3  # metres: where rays start
BAND = (-1, 0, 1)  # voxels before and behind a surface at which its distance is recorded: exact in between
MIN_WEIGHT = 1e-12  # steradians: below it a quotient of sums says nothing


class Rays(NamedTuple):
    """Rays with what was seen along them."""

    origins: Tensor  # [R, 3] metres
    directions: Tensor  # [R, 3] unit
    distance: Tensor  # [R] metres to what was seen
    weight: Tensor  # [R] steradians
    features: Tensor  # [R, C + 1], the last one 1

    def select(self, kept: Tensor) -> Rays:
        """The rays of a mask [R] or of indices."""
        return Rays(*(part[kept] for part in self))


class Rendering(NamedTuple):
    """What a level shows along rays."""

    sums: Tensor  # [R, C + 1] features times weight, and weight, each times opacity
    distance: Tensor  # [R] metres, 0 where nothing is
    opacity: Tensor  # [R]

    def mean(self) -> Tensor:  # [R, C]
        """The average of the features seen; 0 where nothing was."""
        return self.sums[:, :-1] / self.sums[:, -1:].clamp_min(MIN_WEIGHT)


class Level:
    """Sums over all observations at the lattice points of one sparse grid.

    A surface point adds its features, weighted by its pixel's solid angle, to the 8 lattice points around it; rendering
    the sums and their weight along a ray and dividing gives the average, in which what was seen best counts most and
    lattice points that saw nothing do not count. The signed distance to the surface along the viewing rays is averaged
    alike (Curless and Levoy, "A volumetric method for building complex models from range images", 1996); density rises
    from 0 at the surface to its full value one voxel behind it.
    """

    def __init__(self, voxel_size: float, feature_dim: int, max_footprint: float, device: torch.device | str = "cpu"):
        self.grid = SparseGrid(voxel_size, device=device)
        self.max_footprint = max_footprint  # voxels: pixels that are larger than this at the surface are left to others
        self.reach = 0.0  # metres: the largest distance that was observed into this level
        self.dense_reach = 0.0  # metres: up to here pixels were no larger than a voxel, so that surfaces have no holes
        self._storage = [
            torch.zeros(0, feature_dim + 1, device=device),
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
        return self._storage[0][: self.grid.num_voxels]

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

    def restore(self, tensors: dict[str, Tensor], reach: float) -> None:
        """Takes over what `tensors` gave."""
        self.grid = SparseGrid.from_bricks(tensors["brick_coordinates"], self.voxel_size, self.grid.origin)
        self._storage = [tensors[name] for name in ("sums", "weight", "distance_sum", "distance_weight")]
        self.reach = reach
        self._density = None

    def observe(self, rays: Rays, pixel_angle: float) -> None:
        """Adds the rays whose pixels, `pixel_angle` radians wide, are not too large at the surface for this level."""
        limit = self.max_footprint * self.voxel_size / pixel_angle
        near_enough = rays.distance < limit
        if not near_enough.all():
            rays = rays.select(near_enough)
        if rays.distance.numel() == 0:
            return
        self.reach = max(self.reach, rays.distance.max().item())
        self.dense_reach = max(self.dense_reach, self.voxel_size / pixel_angle)
        offsets = [offset * self.voxel_size for offset in BAND]
        self.grid.merge(
            torch.cat([torch.addcmul(rays.origins, rays.directions, (rays.distance + s)[:, None]) for s in offsets])
        )
        self._make_room()
        voxel_scatter_(
            self.sums, self.weight, rays.features, rays.distance, rays.origins, rays.directions, self.grid, rays.weight
        )
        for offset in offsets:
            self._record(rays, rays.distance + offset, -offset)

    def carve(self, rays: Rays) -> None:
        """Takes back what the rays, which see further, show not to be there.

        The level is rendered along the rays; where it stops light well before the distance seen, that place is recorded
        as lying before the surface. A passer-by seen once is gone once a ray has passed there with as much weight.
        """
        if self.grid.num_bricks == 0:
            return
        shown = self.render(rays.origins, rays.directions, self.distance_sum, min_transmittance=0.3)
        margin = 2.0 * self.voxel_size + 0.02 * rays.distance
        wrong = (shown.opacity > 0.5) & (shown.distance + margin < rays.distance)
        if not wrong.any():
            return
        self.clear(rays.select(wrong), shown.distance[wrong])

    def clear(self, rays: Rays, at: Tensor) -> None:
        """Records that the rays passed freely `at` metres from their origins: that place lies before the surface."""
        for offset in BAND:
            self._record(rays, at + offset * self.voxel_size, self.voxel_size)

    def render(
        self,
        origins: Tensor,  # [R, 3]
        directions: Tensor,  # [R, 3]
        sums: Tensor | None = None,  # [V, C'] instead of the level's own
        near: float = NEAR,
        far: float = float("inf"),
        min_transmittance: float = 1e-3,
        density: Tensor | None = None,  # [V] instead of the level's own
    ) -> Rendering:
        """Renders the level along rays, from `near` to `far` metres."""
        features, distance, opacity = volume_render(
            self.sums if sums is None else sums,
            self.density() if density is None else density,
            origins,
            directions,
            self.grid,
            near,
            min(far, self._far(origins)),
            self.voxel_size / STEPS_PER_VOXEL,
            min_transmittance,
        )
        return Rendering(features, distance / opacity.clamp_min(1e-6), opacity)

    def density(self) -> Tensor:  # [V] per metre
        """Density of matter at the lattice points, from the average signed distance of each."""
        if self._density is None:
            distance = self.distance_sum[:, 0] / self.distance_weight.clamp_min(MIN_WEIGHT)
            density = density_of_distance(distance, self.voxel_size)
            self._density = torch.where(self.distance_weight > MIN_WEIGHT, density, 0.0)
        return self._density

    def replace(self, mean: Tensor, density_distance: Tensor) -> None:
        """Sets the average features [V, C] and signed distances [V], metres, keeping their weights."""
        self.sums[:, :-1] = mean * self.sums[:, -1:]
        self.distance_sum[:, 0] = density_distance * self.distance_weight
        self._density = None

    def _record(self, rays: Rays, at: Tensor, signed_distance: float) -> None:
        """Adds a signed distance at the points `at` metres along the rays."""
        value = torch.full_like(at, signed_distance)[:, None]
        voxel_scatter_(
            self.distance_sum, self.distance_weight, value, at, rays.origins, rays.directions, self.grid, rays.weight
        )
        self._density = None

    def _make_room(self) -> None:
        needed = self.grid.num_voxels
        if needed <= self._storage[0].shape[0]:
            return
        capacity = max(needed, 2 * self._storage[0].shape[0])
        for i, old in enumerate(self._storage):
            self._storage[i] = old.new_zeros(capacity, *old.shape[1:])
            self._storage[i][: old.shape[0]] = old

    def _far(self, origins: Tensor) -> float:
        """A distance beyond everything in the grid, for rays that start at the origins."""
        bricks, edge = self.grid.brick_coordinates, self.grid.edge * self.voxel_size
        if bricks.shape[0] == 0 or origins.shape[0] == 0:
            return NEAR
        low, high = bricks.amin(0) * edge, (bricks.amax(0) + 1) * edge
        reach = torch.maximum((origins - low).abs().amax(0), (origins - high).abs().amax(0))
        return reach.norm().item() + self.voxel_size


def density_of_distance(
    distance: Tensor,  # metres, positive before the surface
    voxel_size: float,
) -> Tensor:  # per metre
    """Density at a signed distance: a ramp from RAMP to RAMP - 1 voxels."""
    return (RAMP - distance / voxel_size).clamp(0.0, 1.0) * (OPTICAL_DEPTH_PER_VOXEL / voxel_size)
