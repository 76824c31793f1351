"""The explicit 3D memory: panoramas are observed into it, and it is queried from anywhere."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from evoworld.geometry import Camera, Panorama, SparseGrid, check_pose
from evoworld.ops.threads import kernels_only

from .background import Background
from .level import NEAR, Level, LevelValues, Rays, Shown
from .selection import Selection
from .surfels import SKY_FROM, Surfels, least_around
from .viewpoints import Viewpoints

CARVE_STRIDE = 2  # free space is checked with every second ray of every second row
CLOSED = 0.999  # opacity from which the sky behind is not looked up
SOLID = 0.5  # opacity from which a ray counts as having met a surface
EDGE_RADIUS = 3  # pixels around a depth edge whose rays clear the space that the nearer side blurs into
DENSE = 2.0  # times the distance up to which the base level is dense: from there on the coarse level fills its holes
REACH = 1.2  # times the largest distance observed into a level: from nearer it is looked at
CRACK_RADIUS = 2  # pixels around one without a point in which points of the same surface are looked for
CRACK = 8  # of those 24 pixels: as many must show such points for the pixel to count as seen
CRACK_BAND = 1.15  # times a range: ranges up to there are the same surface's
FINE_WINDOW = 2.0  # voxels of the base level, before and behind its surface, in which finer levels are rendered


@dataclass(frozen=True)
class MemoryConfig:
    """What a memory is made with; kept in its file."""

    voxel_size: float  # metres, of the base level
    feature_dim: int
    scales: tuple[float, ...] = (4.0, 1.0, 0.5)  # voxel sizes of the levels over the base's, coarse to fine
    # Smallest and largest pixel at the surface, in voxels, that each level takes: surfaces so near that the base level
    # has no holes do not go into the coarse one, and those so far that fine voxels would be mostly holes not into them.
    footprints: tuple[tuple[float, float], ...] = ((0.25, math.inf), (0.0, 4.0), (0.0, 2.0))
    surfels: bool = False  # keep what is written once as points too, which show it without a voxel's blur
    near: float = NEAR  # metres: nothing within that of a camera is shown to it


class View(NamedTuple):
    """What `Memory.query` returns."""

    features: Tensor  # [H, W, C]
    depth: Tensor  # [H, W] metres along the ray, 0 where nothing is
    opacity: Tensor  # [H, W]
    visibility: Tensor  # [H, W] 1 where what is shown was seen; of points less where it was seen in large pixels only


class Memory:
    """A world remembered as sparse voxels.

    Args:
        voxel_size: metres, of the base level; near surfaces are also kept in finer voxels, far ones in coarser.
        feature_dim: channels C of what is observed; 3 for colours.
        device: where it lives.

    Example:
        >>> import torch
        >>> from evoworld.geometry import Panorama
        >>> memory, camera = Memory(0.05, feature_dim=3), Panorama(32, 64)
        >>> memory.observe(torch.full((32, 64, 3), 0.5), torch.ones(32, 64), torch.eye(4), camera)
        >>> view = memory.query(camera, torch.eye(4))
        >>> bool(((view.features - 0.5).abs() < 1e-3).all()), bool(((view.depth - 1).abs() < 0.02).all())
        (True, True)
    """

    def __init__(
        self,
        voxel_size: float = 0.05,
        feature_dim: int = 3,
        device: torch.device | str = "cpu",
        config: MemoryConfig | None = None,
    ):
        config = MemoryConfig(voxel_size, feature_dim) if config is None else config
        if not (math.isfinite(config.voxel_size) and config.voxel_size > 0):
            raise ValueError(f"voxel_size: expected a positive number of metres, got {config.voxel_size}")
        if config.feature_dim < 1:
            raise ValueError(f"feature_dim: expected at least 1, got {config.feature_dim}")
        self.config = config
        self.levels = [
            Level(config.voxel_size * scale, config.feature_dim, footprints, device)
            for scale, footprints in zip(config.scales, config.footprints, strict=True)
        ]
        self.background = Background(config.feature_dim, device)
        self.surfels = Surfels(config.feature_dim, device)
        self.viewpoints = Viewpoints(device)
        self.poses = torch.zeros(0, 4, 4, device=device)  # [N, 4, 4] of the cameras observed
        self.prompt = ""  # the words that the world was made with; kept in its file

    @property
    def voxel_size(self) -> float:
        """Metres, of the base level."""
        return self.config.voxel_size

    @property
    def grid(self) -> SparseGrid:
        """The grid of the base level."""
        return next(level.grid for level in self.levels if level.voxel_size == self.voxel_size)

    @property
    def num_voxels(self) -> int:
        """Lattice points allocated, of all levels."""
        return sum(level.grid.num_voxels for level in self.levels)

    @property
    def nbytes(self) -> int:
        """Bytes of what is remembered."""
        voxels = sum(tensor.nbytes for level in self.levels for tensor in level.tensors().values())
        return voxels + self.surfels.rows.nbytes + self.viewpoints.nbytes

    @property
    def device(self) -> torch.device:
        return self.poses.device

    @torch.no_grad()
    @kernels_only()
    def observe(
        self,
        features: Tensor,  # [H, W, C]
        depth: Tensor,  # [H, W]
        camera_to_world: Tensor,  # [4, 4]
        camera: Camera,
        new: Tensor | None = None,  # [H, W] bool
    ) -> None:
        """Adds a frame: surfaces, the free space before them, and the sky where there is no depth.

        Args:
            features: what was seen, such as colours in 0..1; floating point.
            depth: metres as the camera gives them (panorama: along the ray, pinhole: along its axis); values that are
                not positive and finite mean that nothing is there.
            camera_to_world: rigid, OpenCV axes; on the memory's device or on the CPU.
            camera: of the frame's size.
            new: the pixels to add, for what is written once (`evoworld.world.first_write`): they then take nothing
                back of what was observed before. None: all of them, averaged with what was observed before.

        Raises:
            ValueError: for an argument of another shape, dtype or device, values that are not finite, a pose that is
                not rigid; the memory is then unchanged.
        """
        self.check_frame(features, depth, camera_to_world, camera)
        if new is not None and (new.shape != depth.shape or new.dtype != torch.bool):
            raise ValueError(f"new: expected bool {list(depth.shape)}, got {new.dtype} {list(new.shape)}")
        distance = camera.range_from_depth(depth.float()).flatten()
        nothing = ~(torch.isfinite(distance) & (distance > 0))
        distance = torch.where(nothing, math.inf, distance)  # how far space is free
        around = distance
        if new is not None:
            distance, nothing = torch.where(new.flatten(), distance, math.nan), nothing & new.flatten()
        pixel_angle = camera.pixel_angle()
        fitting = [level.fitting(distance, pixel_angle) for level in self.levels]
        # All that the host must know of the frame before it grows the levels, in one look at the device.
        facts = [features.isfinite().all(), nothing.any(), *(fits.nan_to_num(0.0).amax() for fits in fitting)]
        pose = camera_to_world.to(self.device, torch.float64, non_blocking=True)
        facts = torch.cat([pose.flatten(), torch.stack([fact.double() for fact in facts])]).cpu()
        check_pose(facts[:16].view(4, 4))
        finite, has_sky, *reaches = facts[16:].tolist()
        if not finite:
            raise ValueError("features: expected finite values, got NaN or infinity")
        centre = facts[3:12:4].tolist()

        camera_to_world = camera_to_world.to(self.device, torch.float32, non_blocking=True)
        origins, directions = camera.rays(camera_to_world)
        weight = camera.solid_angle(torch.float32, self.device)
        shape, padding = depth.shape, self.levels[0].padding
        empty, ones = (x(*shape, n, device=self.device) for x, n in ((torch.zeros, padding), (torch.ones, 1)))
        values = torch.cat([empty, features.float(), ones], dim=-1).flatten(0, 1)
        nearest = least_around(around.view(shape), EDGE_RADIUS, isinstance(camera, Panorama)).flatten()
        surface = Rays(origins, directions, distance, weight.flatten(), camera.width)
        free = Rays(*(_thin(part.unflatten(0, shape)) for part in surface[:4]), -(-camera.width // CARVE_STRIDE))
        free = free._replace(weight=free.weight * CARVE_STRIDE**2)
        for level, fits, reach in zip(self.levels, fitting, reaches, strict=True):
            carving = new is None and level.voxel_size >= self.voxel_size
            if carving:  # finer levels are only looked at near the base's surface
                level.carve(free, level.far(centre, centre))
            if reach > 0:
                level.observe(surface._replace(distance=fits), values, pixel_angle, reach)
            edge = Selection(distance > nearest + 2 * level.voxel_size)
            level.clear(surface.select(edge), edge.take(nearest, math.nan))
        if has_sky:
            sky = Selection(nothing)
            self.background.observe(
                sky.take(directions), sky.take(values[:, padding:]), sky.take(surface.weight, 0.0), camera.height
            )
        if self.config.surfels and new is not None:
            added = new.flatten()
            reached = torch.where(nothing, math.inf, distance)[added]
            angle = weight.sqrt().flatten()[added]
            self.surfels.add(origins[added], directions[added], reached, angle, features.float()[new])
        self.poses = torch.cat([self.poses, camera_to_world[None]])

    @torch.no_grad()
    @kernels_only()
    def query(self, camera: Camera, camera_to_world: Tensor, background: bool = True) -> View:
        """Renders the memory for a camera at a pose.

        Args:
            camera: of any kind and size.
            camera_to_world: `[4, 4]`, rigid, OpenCV axes; on the CPU the query never waits for a GPU.
            background: show the sky where nothing solid is.

        Returns:
            `View(features [H, W, C], depth [H, W], opacity [H, W], visibility [H, W])`; depth in metres along the ray.

        Raises:
            ValueError: for a pose that is not rigid or not finite.
        """
        pose = camera_to_world.detach().cpu() if isinstance(camera_to_world, Tensor) else camera_to_world
        check_pose(pose)
        if pose.ndim != 2:
            raise ValueError(f"camera_to_world: expected one pose [4, 4], got {list(pose.shape)}")
        origins, directions = camera.rays(camera_to_world.to(self.device, torch.float32, non_blocking=True))
        shown = self.render(origins, directions, centre=pose[:3, 3].tolist(), image_width=camera.width)
        mean, visibility = shown.mean, shown.opacity * shown.seen
        if background:
            open_rays = Selection(shown.opacity < CLOSED)
            sky, sky_seen = self.background.sample(open_rays.take(directions))
            behind = (1 - open_rays.take(shown.opacity)) * sky_seen
            front = open_rays.take(visibility)
            total = front + behind
            blend = front[:, None] * open_rays.take(mean) + behind[:, None] * sky
            mean = open_rays.put(mean, blend / total.clamp_min(1e-6)[:, None])
            visibility = open_rays.put(visibility, total)
        shape = (camera.height, camera.width)
        depth = torch.where(shown.opacity > SOLID, shown.distance, 0.0)
        view = View(mean.view(*shape, -1), depth.view(shape), shown.opacity.view(shape), visibility.view(shape))
        if self.config.surfels and not self.surfels.empty:
            view = self._with_surfels(view, camera, camera_to_world.to(depth), background)
        return view

    def save(self, path: str | os.PathLike) -> None:
        """Writes the memory to one safetensors file, whole or not at all (see `evoworld.world.world_file`)."""
        from .world_file import save_world

        save_world(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike, device: torch.device | str = "cpu") -> Memory:
        """The memory that `save` wrote; raises WorldError for a file that is damaged, other or of a later version."""
        from .world_file import load_world

        return load_world(path, device)

    def fit(
        self,
        frames: Sequence[tuple[Tensor, Tensor, Tensor, Camera]],
        steps: int,
        progress: Callable[[int, float], None] | None = None,
    ) -> None:
        """Refines features and surfaces by gradient descent on what the frames show; see `evoworld.world.fit`."""
        from .fit import fit

        fit(self, frames, steps, progress)

    def render(
        self,
        origins: Tensor,  # [R, 3] metres
        directions: Tensor,  # [R, 3] unit
        values: Sequence[LevelValues] | None = None,
        centre: Sequence[float] | None = None,
        image_width: int = 0,
    ) -> Shown:
        """All levels along rays: fine around the base's surface if it was seen near, coarse where the base has holes.

        Args:
            origins: `[R, 3]` metres.
            directions: `[R, 3]` unit.
            values: what the levels are to hold instead of their own; gradients flow to it.
            centre: where all rays start, if they all do; spares a look at the origins.
            image_width: pixels in a row where the rays are an image's pixels, row by row.
        """
        values = [level.values() for level in self.levels] if values is None else values
        (coarse, coarse_values), (base, base_values), *finer = zip(self.levels, values, strict=True)
        box = (centre, centre) if centre is not None else _box(origins)
        shown = base.render(origins, directions, base_values, self.config.near, base.far(*box), image_width=image_width)
        distance = torch.where(shown.opacity.detach() > SOLID, shown.distance.detach(), math.inf)

        limit = DENSE * base.dense_reach  # up to here the base has no holes
        blank = (shown.opacity > SOLID) & (shown.seen == 0)  # between the features of pixels that lie far apart
        doubtful = Selection((distance > limit) | blank)
        if coarse.grid.num_bricks and not doubtful.empty:
            guard = coarse.render(
                doubtful.take(origins, math.nan),
                doubtful.take(directions),
                coarse_values,
                self.config.near,
                coarse.far(*box),
                image_width=doubtful.image_width(image_width),
            )
            leaks = (guard.distance > limit) & (guard.distance + 2 * coarse.voxel_size < doubtful.take(distance))
            better = (guard.opacity > SOLID) & (leaks | (doubtful.take(blank) & (guard.seen > 0)))
            pairs = zip(shown, guard, strict=True)
            shown = Shown(*(doubtful.put(a, _where(better, b, doubtful.take(a))) for a, b in pairs))

        window = FINE_WINDOW * base.voxel_size
        for level, level_values in finer:
            if level.reach == 0.0:
                continue
            near = Selection(distance < REACH * level.reach)
            if near.empty:
                continue
            start = (near.take(distance, 0.0) - window).clamp_min(0.0)
            d = near.take(directions)
            detail = level.render(
                torch.addcmul(near.take(origins, math.nan), d, start[:, None]),
                d,
                level_values,
                0.0,
                2 * window,
                image_width=near.image_width(image_width),
            )
            share = detail.seen * detail.opacity
            shown = shown._replace(
                mean=near.put(shown.mean, torch.lerp(near.take(shown.mean), detail.mean, share[:, None])),
                distance=near.put(
                    shown.distance, torch.lerp(near.take(shown.distance), start + detail.distance, share)
                ),
            )
        return shown

    def _with_surfels(self, view: View, camera: Camera, camera_to_world: Tensor, sky: bool) -> View:
        """What was written as points is shown by them: voxels, being wide, only fill the cracks between points."""
        splat = self.surfels.render(camera, camera_to_world, view.depth, self.config.near, sky)
        mean, distance, visibility = (part.view(view.features.shape[:2] + part.shape[1:]) for part in splat)
        there = visibility > 0
        crack = ~there & (_count_around(distance, view.depth, isinstance(camera, Panorama)) >= CRACK)
        solid = there & (distance < SKY_FROM)
        return View(
            torch.where(there[..., None], mean, view.features),
            torch.where(there, torch.where(solid, distance, 0.0), view.depth),
            torch.where(there, solid.to(view.opacity), view.opacity),
            torch.where(crack, view.visibility, visibility),
        )

    def check_frame(self, features: Tensor, depth: Tensor, camera_to_world: Tensor, camera: Camera) -> None:
        """Raises ValueError for what `observe` refuses, but for values that are not finite and poses."""
        shape = (camera.height, camera.width)
        for name, tensor, wanted in (
            ("features", features, (*shape, self.config.feature_dim)),
            ("depth", depth, shape),
            ("camera_to_world", camera_to_world, (4, 4)),
        ):
            if tuple(tensor.shape) != wanted or not tensor.is_floating_point():
                raise ValueError(
                    f"{name}: expected floating point {list(wanted)}, got {tensor.dtype} {list(tensor.shape)}"
                )
            anywhere = (self.device, torch.device("cpu")) if tensor is camera_to_world else (self.device,)
            if tensor.device not in anywhere:
                raise ValueError(f"{name}: expected device {self.device}, got {tensor.device}")


def _thin(image: Tensor) -> Tensor:  # [H, W, ...] -> [R, ...]
    """One pixel in CARVE_STRIDE of one row in CARVE_STRIDE, row by row."""
    return image[::CARVE_STRIDE, ::CARVE_STRIDE].flatten(0, 1)


def _where(mask: Tensor, chosen: Tensor, other: Tensor) -> Tensor:  # [R], [R, ...], [R, ...] -> [R, ...]
    return torch.where(mask.view(-1, *[1] * (chosen.ndim - 1)), chosen, other)


def _box(points: Tensor) -> tuple[list[float], list[float]]:  # [P, 3]
    """The lowest and the highest coordinates; zeros if there are no points."""
    if points.shape[0] == 0:
        return [0.0] * 3, [0.0] * 3
    low, high = torch.stack([points.amin(0), points.amax(0)]).tolist()
    return low, high


def _count_around(
    distance: Tensor,  # [H, W] metres, 0 where nothing is
    surface: Tensor,  # [H, W] metres, 0 where nothing is
    wraps: bool,
) -> Tensor:  # [H, W]
    """How many of the pixels around each lie on its surface."""
    n, mode = CRACK_RADIUS, "circular" if wraps else "constant"
    wide = F.pad(F.pad(distance[None, None], (n, n, 0, 0), mode=mode), (0, 0, n, n))
    around = F.unfold(wide, 2 * n + 1)[0].view(-1, *surface.shape)
    return ((around < CRACK_BAND * surface) & (around * CRACK_BAND > surface)).sum(0)
