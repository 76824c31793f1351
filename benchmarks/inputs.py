"""What the ops are timed on: panoramas of a capture, lifted to C channels, and the world they make."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from evoworld.data import Capture, Frame, read_capture
from evoworld.geometry import Panorama, SparseGrid
from evoworld.world import Memory

CHANNELS = 16
VOXEL_SIZE = 0.05
DEFAULT_CAPTURE = Path(__file__).resolve().parent.parent / "examples" / "living_room"


@dataclass(frozen=True)
class Rays:
    """One panorama as the voxel ops take it, with a grid that holds its points."""

    features: Tensor  # [R, C]
    depth: Tensor  # [R]
    origins: Tensor  # [R, 3]
    directions: Tensor  # [R, 3]
    grid: SparseGrid

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.features, self.depth, self.origins, self.directions))

    @property
    def num_points(self) -> int:
        return int(((self.depth > 0) & torch.isfinite(self.depth)).sum())


def find_captures(directory: Path | None) -> list[Capture]:
    """The captures in a directory (itself one, or a folder of them); the one that ships when None."""
    root = DEFAULT_CAPTURE if directory is None else directory
    if (root / "transforms.json").is_file():
        return [read_capture(root)]
    found = sorted(path.parent for path in root.glob("*/transforms.json"))
    if not found:
        raise ValueError(f"captures: expected transforms.json in {root} or in a folder of it, found none")
    return [read_capture(path) for path in found]


def panorama_rays(frame: Frame, height: int, grid: SparseGrid | None = None) -> Rays:
    """A frame as rays at `height` x 2 `height`, a whole multiple of its size (nearest: each pixel is repeated).

    Without a grid it gets its own, of its own points.
    """
    factor = height // frame.image.shape[0]
    if factor < 1 or factor * frame.image.shape[0] != height:
        raise ValueError(f"height: expected a multiple of the frame's {frame.image.shape[0]}, got {height}")
    image = frame.image.repeat_interleave(factor, 0).repeat_interleave(factor, 1).flatten(0, 1)
    depth = frame.depth.repeat_interleave(factor, 0).repeat_interleave(factor, 1).flatten()
    features = lift(image)
    origins, directions = Panorama(height, 2 * height).rays(frame.camera_to_world)
    origins, directions = origins.contiguous(), directions.contiguous()
    if grid is None:
        grid = SparseGrid.from_points(points_of(depth, origins, directions), VOXEL_SIZE)
    return Rays(features, depth, origins, directions, grid)


def lift(
    image: Tensor,  # [..., 3]
) -> Tensor:  # [..., CHANNELS]
    """The colours, repeated until the channels are full."""
    return image.repeat(*[1] * (image.ndim - 1), -(-CHANNELS // image.shape[-1]))[..., :CHANNELS].contiguous()


def points_of(
    depth: Tensor,  # [R]
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
) -> Tensor:  # [P, 3]
    """The world points of the rays that hit something."""
    hit = (depth > 0) & torch.isfinite(depth)
    return origins[hit] + depth[hit, None] * directions[hit]


@dataclass(frozen=True)
class World:
    """What `volume_render` is timed on: the base level of a memory of a capture."""

    frames: Sequence[Frame]
    grid: SparseGrid
    features: Tensor  # [V, C]
    density: Tensor  # [V]

    @cached_property
    def far(self) -> float:
        """Metres: the longest range of the capture, and a voxel."""
        return max(frame.depth.max().item() for frame in self.frames) + self.grid.voxel_size


def remember(capture: Capture, num_frames: int | None = None) -> World:
    """Observe a capture's frames, lifted to 16 channels, and take the memory's level of 5 cm voxels."""
    frames = [capture[i] for i in range(min(len(capture), num_frames or len(capture)))]
    memory = Memory(VOXEL_SIZE, feature_dim=CHANNELS)
    for frame in frames:
        memory.observe(lift(frame.image), frame.depth, frame.camera_to_world, frame.camera)
    level = next(level for level in memory.levels if level.voxel_size == VOXEL_SIZE)
    features = level.sums[:, :CHANNELS] / level.sums[:, -1:].clamp(min=torch.finfo(torch.float32).tiny)
    return World(frames, level.grid, features.contiguous(), level.density().contiguous())
