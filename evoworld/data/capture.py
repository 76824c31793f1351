"""A capture: frames with pose and camera, whose images are read when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import torch

from evoworld.geometry import Camera, check_pose, make_pose

from .files import CaptureError, image_size, one_line, read_depth, read_image, size_message


@dataclass(frozen=True)
class Frame:
    """One picture of a capture, in the conventions of the whole library."""

    image: torch.Tensor  # [H, W, 3] float32, 0..1
    depth: torch.Tensor | None  # [H, W] float32 metres: range of a panorama, z-depth of a pinhole; 0: nothing there
    camera_to_world: torch.Tensor  # [4, 4] float32, OpenCV camera axes, world with z up
    camera: Camera
    name: str
    timestamp: float | None = None  # seconds


@dataclass(frozen=True)
class FrameFiles:
    """Where a frame lies and what its numbers mean; `load` reads it."""

    name: str
    camera: Camera
    camera_to_world: torch.Tensor  # [4, 4] float32, from `rigid_pose`
    image: Path
    depth: Path | None = None
    depth_unit: float = 1.0  # metres of one count in the depth file
    depth_is_range: bool = False  # the file holds ranges although the camera's depth is z-depth
    timestamp: float | None = None

    def check(self) -> None:
        """Raise CaptureError unless the files exist and, by their headers, have the camera's size."""
        for path in (self.image, self.depth):
            if path is not None and (size := image_size(path)) != self._size:
                raise CaptureError(size_message(path, size, self._size))

    def load(self) -> Frame:
        """Read and decode the files; CaptureError if one is damaged or holds no valid depth."""
        depth = None
        if self.depth is not None:
            depth = read_depth(self.depth, self._size, self.depth_unit)
            if self.depth_is_range:
                depth = self.camera.depth_from_range(depth)
        image = read_image(self.image, self._size)
        return Frame(image, depth, self.camera_to_world, self.camera, self.name, self.timestamp)

    @property
    def _size(self) -> tuple[int, int]:
        return self.camera.height, self.camera.width


class Capture(Sequence[Frame]):
    """A sequence of frames; indexing reads a frame from disk, a slice is a capture of fewer frames.

    Args:
        name: what the capture is called.
        frames: where each frame lies. All files must exist and have the size of their camera; nothing is decoded yet.
        source: the file or folder the list came from, for messages; the name if not given.

    Raises:
        CaptureError: there are no frames, or a file is missing, unreadable or of another size than its camera.
    """

    def __init__(self, name: str, frames: Sequence[FrameFiles], source: Path | None = None) -> None:
        if not frames:
            raise CaptureError(f"{source or name}: expected at least one frame, got none")
        for frame in frames:
            frame.check()
        self.name = name
        self.frames = tuple(frames)

    @property
    def camera(self) -> Camera:
        """The camera of the first frame; frames may differ, each has its own."""
        return self.frames[0].camera

    @property
    def has_depth(self) -> bool:
        """Every frame has a depth image."""
        return all(frame.depth is not None for frame in self.frames)

    @property
    def camera_to_world(self) -> torch.Tensor:
        """Poses of all frames [T, 4, 4] float32; no image is read."""
        return torch.stack([frame.camera_to_world for frame in self.frames])

    def __len__(self) -> int:
        return len(self.frames)

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> Capture: ...
    def __getitem__(self, index: int | slice) -> Frame | Capture:
        if isinstance(index, slice):
            return Capture(self.name, self.frames[index])
        return self.frames[index].load()

    def __repr__(self) -> str:
        depth = "with depth" if self.has_depth else "without depth"
        return f"Capture({self.name!r}, {len(self)} frames of {self.camera} {depth})"


def rigid_pose(
    source: str,
    pose: torch.Tensor,  # [4, 4] float64
) -> torch.Tensor:
    """A pose out of a file as float32 [4, 4], its rotation the nearest exact one (files round to a few decimals).

    U V^T of the singular value decomposition R = U S V^T is the rotation nearest to R.

    Raises:
        CaptureError: it holds NaN or infinite values or is not rigid; the message starts with `source`.
    """
    try:
        check_pose(pose.to(torch.float32), source)  # so that what overflows it is found too
    except ValueError as error:
        raise CaptureError(one_line(error)) from error
    u, _, vh = torch.linalg.svd(pose[:3, :3])
    return make_pose(u @ vh, pose[:3, 3]).to(torch.float32)


def unique_names(paths: Sequence[str]) -> list[str]:
    """A name for each image path that can name a file: its stem, or the path joined by _ where stems repeat.

    >>> unique_names(["rgb/0001.jpg", "rgb/0002.jpg"])
    ['0001', '0002']
    >>> unique_names(["left/0001.jpg", "right/0001.jpg"])
    ['left_0001', 'right_0001']
    """
    stems = [Path(path).stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    return ["_".join(part for part in Path(path).with_suffix("").parts if part not in ("..", "/")) for path in paths]
