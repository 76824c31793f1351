"""Walks out of captures, made level, with one yaw and of one height, so that one trains on captures as on worlds."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from evoworld.geometry import Panorama

from .capture import Capture, Frame, FrameFiles
from .files import CaptureError
from .level import level_panorama
from .read import read_capture
from .walk import Walk, level_poses


class CaptureWalks(Sequence[Walk]):
    """Walks of T frames each that follow one another in a capture; neighbouring walks share half of their frames.

    Args:
        captures: panorama captures, or their paths. Frames of a walk are turned to the yaw of its first.
        height: H of the panoramas.
        num_frames: T of each walk.

    Raises:
        CaptureError: a capture cannot be read, has fewer frames than a walk, or is not of panoramas.
        ValueError: ``height`` or ``num_frames`` is not positive, or there are no captures.

    Example:
        >>> walks = CaptureWalks(["examples/living_room"], height=16, num_frames=24)
        >>> len(walks), walks[0].image.shape
        (2, torch.Size([24, 16, 32, 3]))
    """

    def __init__(self, captures: Sequence[Capture | str | os.PathLike], height: int = 64, num_frames: int = 24) -> None:
        if height < 1 or num_frames < 1:
            raise ValueError(f"height, num_frames: expected at least 1, got {height} and {num_frames}")
        if not captures:
            raise ValueError("captures: expected at least one, got none")
        self.captures = tuple(c if isinstance(c, Capture) else read_capture(c) for c in captures)
        self.height, self.num_frames = height, num_frames
        for capture in self.captures:
            _check(capture, num_frames)
        self._starts = [(c, start) for c in self.captures for start in _starts(len(c), num_frames)]
        self.identity = f"captures {height} {num_frames} {[_facts(frame) for c in self.captures for frame in c.frames]}"

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Walk:
        capture, start = self._starts[index]
        frames = capture[start : start + self.num_frames]
        poses = _level_poses(frames.camera_to_world)
        views = [_view(frame, pose, self.height) for frame, pose in zip(frames, poses, strict=True)]
        images, depths = zip(*views, strict=True)
        return Walk(
            torch.stack(images),
            torch.stack(depths) if capture.has_depth else None,
            poses,
            ("",) * len(images),
            f"{capture.name}-{start}",
        )


def _check(capture: Capture, num_frames: int) -> None:
    if len(capture) < num_frames:
        raise CaptureError(f"{capture.name}: expected at least {num_frames} frames for a walk, got {len(capture)}")
    for frame in capture.frames:
        if not isinstance(frame.camera, Panorama):
            raise CaptureError(f"{capture.name}: {frame.name}: expected a panorama, got {frame.camera}")


def _facts(frame: FrameFiles) -> str:
    """All that a frame depends on: its files as they are now, and what the capture says of them."""
    times = [path and path.stat().st_mtime_ns for path in (frame.image, frame.depth)]
    return f"{frame} {times} {frame.camera_to_world.tolist()}"


def _starts(count: int, num_frames: int) -> list[int]:
    """The first frames of walks of which each shares half with the next; the last ends with the capture."""
    last = count - num_frames
    return [*range(0, last, max(1, num_frames // 2)), last]


def _level_poses(camera_to_world: torch.Tensor) -> torch.Tensor:  # [T, 4, 4] -> [T, 4, 4]
    """Level poses at the same places, all with the yaw of the first."""
    right = camera_to_world[0, :3, 0]
    return level_poses(camera_to_world[:, :3, 3], torch.atan2(right[0], -right[1]))


def _view(frame: Frame, pose: torch.Tensor, height: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    rotation = frame.camera_to_world[:3, :3].T @ pose[:3, :3]
    return level_panorama(frame.image, frame.depth, rotation, height)
