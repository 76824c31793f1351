"""The layout of the EvoWorld authors' data: episodes of numbered panoramas and a table of Unity poses."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from evoworld.geometry import Panorama, pose_from_unity

from .capture import Capture, FrameFiles, rigid_pose
from .files import DEPTH_UNITS, CaptureError, depth_beside, image_size, one_line

POSES = "camera_poses.txt"
_COLUMNS = ("frame", "posx", "posy", "posz", "rotx", "roty", "rotz")
_HEADER = "Frame,PosX,PosY,PosZ,RotX,RotY,RotZ"
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def find_episodes(path: Path) -> list[Path]:
    """The episode folders of a capture in order of their numbers: itself, or its `episode_*`; empty if none."""
    if (path / POSES).is_file():
        return [path]
    episodes = [folder for folder in path.glob("episode_*") if (folder / POSES).is_file()]
    return sorted(episodes, key=lambda folder: ([int(digits) for digits in re.findall(r"\d+", folder.name)], folder))


def read_evoworld(path: str | Path) -> Capture:
    """Read an episode, or a folder of `episode_*`, as the authors of EvoWorld publish them.

    An episode holds

    * `camera_poses.txt` with the header `Frame,PosX,PosY,PosZ,RotX,RotY,RotZ`: metres and degrees, Unity axes;
      pose_from_unity turns them into OpenCV camera axes in a world with z up (Unity's x, z, y become x, y, z);
    * `panorama/001.png` (or .jpg) for the frame numbered 1, equirectangular, the viewing direction in its centre;
    * optionally `depth/001.png`, 16 bit, range in millimetres, or `depth/001.npy`, float32, range in metres; 0 where
      there is nothing. A depth folder covers every frame.

    The episodes of one folder share one world, as the authors record them: their frames follow one another.

    Source: https://github.com/JiahaoPlus/EvoWorld, for the layout and the axes.

    Raises:
        CaptureError: a file that is missing or malformed, or a frame that is listed twice; one line.
    """
    path = Path(path)
    episodes = find_episodes(path)
    frames = []
    for episode in episodes:
        prefix = "" if episode == path else f"{episode.name}_"
        frames += _read_episode(episode, prefix)
    return Capture(path.resolve().name, frames, source=path / POSES)


def _read_episode(folder: Path, prefix: str) -> list[FrameFiles]:
    poses = _read_poses(folder / POSES)
    images = _numbered_images(folder / "panorama")
    frames = []
    camera = None
    for number, pose in poses.items():
        if number not in images:
            raise CaptureError(f"{folder / 'panorama' / f'{number:03d}.png'}: no such file, nor {number:03d}.jpg")
        image = images[number]
        camera = camera or _panorama(image)
        depth = depth_beside(folder / "depth", image.stem)
        unit = DEPTH_UNITS[depth.suffix] if depth else 1.0
        frames.append(FrameFiles(prefix + image.stem, camera, pose, image, depth, unit))
    return frames


def _read_poses(file: Path) -> dict[int, torch.Tensor]:
    """Frame numbers and poses [4, 4], in the order of the file."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise CaptureError(f"{file}: expected a text file that can be read, got: {one_line(error)}") from error
    header = lines[0] if lines else ""
    if tuple(column.strip().lower() for column in header.split(",")) != _COLUMNS:
        raise CaptureError(f"{file}: expected the header {_HEADER}, got {header[:60]!r}")
    poses: dict[int, torch.Tensor] = {}
    for index, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        source = f"{file} line {index}"
        fields = line.split(",")
        try:
            number, values = int(fields[0]), [float(field) for field in fields[1:]]
        except ValueError:
            number, values = -1, []
        if len(values) != 6 or number < 0:
            raise CaptureError(f"{source}: expected a frame number and 6 numbers, got {line[:60]!r}")
        if number in poses:
            raise CaptureError(f"{source}: expected each frame once, got frame {number} again")
        poses[number] = rigid_pose(source, pose_from_unity(torch.tensor(values, dtype=torch.float64)))
    if not poses:
        raise CaptureError(f"{file}: expected at least one frame, got none")
    return poses


def _numbered_images(folder: Path) -> dict[int, Path]:
    """Frame numbers and images of a panorama folder; empty if it is not there."""
    if not folder.is_dir():
        return {}
    paths = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in _IMAGE_SUFFIXES)
    return {int(path.stem): path for path in paths if path.stem.isdecimal()}


def _panorama(image: Path) -> Panorama:
    height, width = image_size(image)
    try:
        return Panorama(height, width)
    except ValueError as error:
        raise CaptureError(f"{image}: {one_line(error)}") from error
