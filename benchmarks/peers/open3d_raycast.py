"""Open3D's VoxelBlockGrid: a TSDF of the same capture, ray-cast to the first surface, depth alone: less work.

Open3D knows pinhole cameras alone: the panoramas enter as the six faces of a cubemap, and a view is a pinhole image.
"""

from collections.abc import Sequence

import numpy as np
import open3d as o3d
import open3d.core as o3c
import torch
from torch import Tensor

from evoworld.data import Frame
from evoworld.geometry import Panorama, Pinhole, invert_pose, make_pose

# It tells of its range map at every call.
o3d.utility.set_verbosity_level(o3d.utility.VerbosityLevel.Error)

FACE = 256  # pixels along an edge of the faces that are integrated: finer than the panorama
VIEW = Pinhole(
    256, 512, fx=128.0, fy=128.0, cx=256.0, cy=128.0
)  # as many rays as a 256 x 512 panorama, 127 x 90 degrees
BLOCK = 16  # voxels along an edge of a block: Open3D's default
TRUNCATION = 8.0  # voxels: Open3D's default; at 4 surfaces tear


class SurfaceGrid:
    """A TSDF of some frames; `cast` renders the depth of a pinhole view from it.

    Sides of a view are multiples of 8, the factor of Open3D's coarse range map: others lose their last pixels.
    """

    def __init__(self, frames: Sequence[Frame], voxel_size: float, far: float, max_blocks: int = 60_000) -> None:
        self.far = far
        self.grid = o3d.t.geometry.VoxelBlockGrid(
            ("tsdf", "weight"), (o3c.float32, o3c.float32), ((1), (1)), voxel_size, BLOCK, max_blocks
        )
        face = Pinhole(FACE, FACE, fx=FACE / 2, fy=FACE / 2, cx=FACE / 2, cy=FACE / 2)
        for frame in frames:
            for turn in _face_rotations():
                pose = frame.camera_to_world.double() @ make_pose(turn, torch.zeros(3, dtype=torch.float64))
                self._integrate(_face_depth(frame, face, turn), face, pose)
        self._reserve_fragments()

    def blocks_in_view(self, depth: Tensor, camera: Pinhole, camera_to_world: Tensor) -> o3c.Tensor:
        """The blocks around what a view sees, which Open3D wants to be told; found outside the clock."""
        view = (_image(depth), _intrinsic(camera), _extrinsic(camera_to_world))
        return self.grid.compute_unique_block_coordinates(*view, 1.0, self.far, TRUNCATION)

    def cast(self, camera: Pinhole, camera_to_world: Tensor, blocks: o3c.Tensor):
        """Open3D's result for one view; `depth_of` makes a tensor of it."""
        return self.grid.ray_cast(
            block_coords=blocks,
            intrinsic=_intrinsic(camera),
            extrinsic=_extrinsic(camera_to_world),
            width=camera.width,
            height=camera.height,
            render_attributes=["depth"],
            depth_scale=1.0,
            depth_min=0.1,
            depth_max=self.far,
            weight_threshold=0.5,
            trunc_voxel_multiplier=TRUNCATION,
        )

    def _reserve_fragments(self) -> None:
        """Make Open3D's buffer of range fragments large, once.

        The first picture that is cast decides its size. Where it is too small, Open3D 0.20 reads fragments that were
        never written, which crashes or hangs it; a large picture of a single block leaves room for all that follows.
        """
        large = Pinhole(4096, 4096, fx=2048.0, fy=2048.0, cx=2048.0, cy=2048.0)
        first_block = self.grid.hashmap().key_tensor()[self.grid.hashmap().active_buf_indices()[:1].to(o3c.int64)]
        self.cast(large, torch.eye(4), first_block)

    def _integrate(self, depth: Tensor, camera: Pinhole, camera_to_world: Tensor) -> None:
        blocks = self.blocks_in_view(depth, camera, camera_to_world)
        view = (_image(depth), _intrinsic(camera), _extrinsic(camera_to_world))
        self.grid.integrate(blocks, *view, 1.0, self.far, TRUNCATION)


def depth_of(result) -> Tensor:
    """[H, W] z-depth in metres, 0 where no surface was hit."""
    return torch.from_numpy(result["depth"].numpy().squeeze(-1).copy())


def _face_rotations() -> list[Tensor]:
    """Camera-from-face rotations [3, 3] of the six faces."""
    forward = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 0, -1], [-1, 0, 0], [0, -1, 0], [0, 1, 0]], dtype=torch.float64)
    down = torch.tensor([[0, 1, 0]] * 4 + [[0, 0, 1], [0, 0, -1]], dtype=torch.float64)
    return [torch.stack([torch.linalg.cross(d, f), d, f], dim=-1) for f, d in zip(forward, down, strict=True)]


def _face_depth(frame: Frame, face: Pinhole, turn: Tensor) -> Tensor:
    """z-depth of the pixel of the panorama nearest to each pixel of a face (never a mean across an edge)."""
    assert isinstance(frame.camera, Panorama)
    directions = face.directions(torch.float64) @ turn.T
    column, row = frame.camera.project(directions).floor().long().unbind(-1)
    depth = frame.depth[row.clamp(max=frame.camera.height - 1), column.clamp(max=frame.camera.width - 1)]
    return face.depth_from_range(depth.view(face.height, face.width)).float()


def _image(depth: Tensor) -> o3d.t.geometry.Image:
    return o3d.t.geometry.Image(o3c.Tensor(np.ascontiguousarray(depth.numpy())))


def _intrinsic(camera: Pinhole) -> o3c.Tensor:
    # Open3D puts pixel centres at whole numbers.
    return o3c.Tensor([[camera.fx, 0, camera.cx - 0.5], [0, camera.fy, camera.cy - 0.5], [0, 0, 1]], o3c.float64)


def _extrinsic(camera_to_world: Tensor) -> o3c.Tensor:
    return o3c.Tensor(invert_pose(camera_to_world.double()).numpy(), o3c.float64)
