"""Where a camera goes: a short closed walk, a path from a file, or the poses of a capture.

A path file is JSON with a list of `keys`. A key is a place and a direction,

    {"position": [x, y, z], "yaw": 90, "pitch": 0}

in metres and degrees (yaw 0 looks along world +x, 90 along +y; pitch is positive upwards; both are 0 when left out),
or a whole pose, `{"camera_to_world": [[...], [...], [...], [...]]}` with OpenCV axes. The camera runs through the keys
on a smooth curve (Catmull-Rom; rotations by slerp), with as much time between each two. Beside `keys` there may be

    "frames": 120       how many frames (otherwise the command's)
    "closed": true      back to the first key at the end
    "smooth": false     straight lines between the keys
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch

from evoworld.geometry import check_pose, interpolate_poses, make_pose
from evoworld.world.evolve import FARTHEST

MAX_FRAMES = 100_000
KEY_FIELDS = {"position", "yaw", "pitch", "camera_to_world"}
PATH_FIELDS = {"keys", "frames", "closed", "smooth"}


def level_pose(
    position: torch.Tensor,  # [..., 3]
    yaw: torch.Tensor,  # [...]
    pitch: torch.Tensor | float = 0.0,  # [...]
) -> torch.Tensor:
    """Pose at `position` without roll: yaw from world +x towards +y, pitch upwards (radians, metres).

    Returns:
        `[..., 4, 4]` camera-to-world, OpenCV axes.

    Example:
        >>> level_pose(torch.zeros(3), torch.tensor(0.0))[:3, 2]  # looks along +x
        tensor([1., 0., 0.])
    """
    pitch = torch.as_tensor(pitch, dtype=yaw.dtype).expand_as(yaw)
    zero = torch.zeros_like(yaw)
    forward = torch.stack((yaw.cos() * pitch.cos(), yaw.sin() * pitch.cos(), pitch.sin()), -1)
    right = torch.stack((yaw.sin(), -yaw.cos(), zero), -1)
    down = torch.linalg.cross(forward, right)
    return make_pose(torch.stack((right, down, forward), -1), position)


def yaw_of(pose: torch.Tensor) -> torch.Tensor:
    """The yaw (radians) of poses `[..., 4, 4]`: where they look, seen from above.

    A pose that looks straight up or down has the yaw of the lower, or upper, edge of its image.
    """
    forward, up = pose[..., :2, 2], -pose[..., :2, 1] * -pose[..., 2:3, 2].sign()
    heading = torch.where(forward.norm(dim=-1, keepdim=True) > 1e-4, forward, up)
    return torch.atan2(heading[..., 1], heading[..., 0])


def orbit(
    center: torch.Tensor,  # [4, 4]
    radius: float,
    num_frames: int,
    turn: bool,
) -> torch.Tensor:
    """A short closed walk: once around a level circle, the last frame one step before the first.

    Args:
        center: `[4, 4]`, the pose in the middle; the walk keeps its height.
        radius: of the circle, in metres.
        num_frames: frames of the walk, at least 1.
        turn: look along the way (for perspective views); otherwise keep looking as `center` does, level, as is right
            for panoramas: their spectators turn by themselves.

    Returns:
        `[num_frames, 4, 4]` camera-to-world.

    Raises:
        ValueError: `center` is not a pose, `radius` negative or not finite, or `num_frames` less than 1.

    Example:
        >>> walk = orbit(torch.eye(4), radius=2.0, num_frames=4, turn=True)
        >>> walk[:, :2, 3].round().abs()
        tensor([[2., 0.],
                [0., 2.],
                [2., 0.],
                [0., 2.]])
    """
    check_pose(center, "center")
    if not 0 <= radius < math.inf:
        raise ValueError(f"radius: expected a finite number of metres, got {radius}")
    _check_num_frames(num_frames)
    angle = torch.arange(num_frames, dtype=center.dtype) / num_frames * 2 * math.pi
    circle = torch.stack((angle.cos(), angle.sin(), torch.zeros_like(angle)), -1)
    yaw = angle + math.pi / 2 if turn else yaw_of(center).expand_as(angle)
    return level_pose(center[:3, 3] + radius * circle, yaw)


def closed_path(
    keys: torch.Tensor,  # [K, 4, 4]
    num_frames: int,
    smooth: bool = True,
) -> torch.Tensor:
    """Once around through the key poses, in a curve as smooth at the first key as at any other.

    Args:
        keys: `[K, 4, 4]` camera-to-world.
        num_frames: frames of the walk, at least 1; the first key is not repeated at the end.
        smooth: a Catmull-Rom spline; otherwise straight lines.

    Returns:
        `[num_frames, 4, 4]` camera-to-world.

    Raises:
        ValueError: keys that are no poses, or `num_frames` less than 1.

    Example:
        >>> keys = orbit(torch.eye(4), radius=1.0, num_frames=6, turn=True)
        >>> torch.allclose(closed_path(keys, 12)[::2], keys, atol=1e-5)
        True
    """
    _check_num_frames(num_frames)
    around = torch.cat((keys[-1:], keys, keys[:1], keys[1:2] if len(keys) > 1 else keys[:1]))
    times = 1 + torch.arange(num_frames, dtype=torch.float64) / num_frames * len(keys)
    return interpolate_poses(around, times, smooth)


def middle_pose(poses: torch.Tensor) -> torch.Tensor:
    """Of the poses `[N, 4, 4]`, the one nearest to their mean position: in the middle, and surely in free space."""
    check_pose(poses, "poses")
    if poses.ndim != 3 or len(poses) == 0:
        raise ValueError(f"poses: expected [N, 4, 4] with at least one pose, got {list(poses.shape)}")
    positions = poses[:, :3, 3]
    return poses[(positions - positions.mean(0)).norm(dim=-1).argmin()]


def read_path(path: str | os.PathLike, num_frames: int) -> torch.Tensor:
    """The poses of a path file, in the format that this module describes.

    Args:
        path: a JSON file.
        num_frames: frames to make of it where the file does not say.

    Returns:
        `[N, 4, 4]` camera-to-world.

    Raises:
        ValueError: not JSON, an unknown or missing field, or a key that is no pose; the message names the file and key.
        OSError: the file cannot be read.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "path.json"
        >>> _ = file.write_text('{"keys": [{"position": [0, 0, 1.5]}, {"position": [2, 0, 1.5], "yaw": 90}]}')
        >>> read_path(file, 5)[:, 0, 3]
        tensor([0.0000, 0.5000, 1.0000, 1.5000, 2.0000])
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a JSON file, got something that is not text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON (line {error.lineno}: {error.msg})") from error
    except RecursionError as error:
        raise ValueError(f"{path}: expected an object with keys, got brackets within brackets") from error
    try:
        return _poses_of(content, num_frames)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _poses_of(content: Any, num_frames: int) -> torch.Tensor:
    _check_fields(content, PATH_FIELDS, "the file")
    keys = content.get("keys")
    if not isinstance(keys, list) or not keys:
        raise ValueError("keys: expected a list of at least one key")
    poses = torch.stack([_key_pose(key, f"keys[{index}]") for index, key in enumerate(keys)])
    for name in ("closed", "smooth"):
        if not isinstance(content.get(name, False), bool):
            raise ValueError(f"{name}: expected true or false, got {content[name]!r}")
    num_frames = content.get("frames", num_frames)
    _check_num_frames(num_frames)
    if content.get("closed", False):
        return closed_path(poses, num_frames, content.get("smooth", True)).float()
    times = torch.linspace(0, len(poses) - 1, num_frames, dtype=torch.float64).clamp(max=len(poses) - 1)
    return interpolate_poses(poses, times, content.get("smooth", True)).float()


def _key_pose(key: Any, name: str) -> torch.Tensor:
    _check_fields(key, KEY_FIELDS, name)
    if ("camera_to_world" in key) == ("position" in key):
        raise ValueError(f"{name}: expected either position (with yaw and pitch) or camera_to_world")
    if "camera_to_world" in key:
        pose = _numbers(key["camera_to_world"], (4, 4), f"{name}.camera_to_world")
        check_pose(pose, f"{name}.camera_to_world")
    else:
        yaw, pitch = (_numbers(key.get(angle, 0.0), (), f"{name}.{angle}").deg2rad() for angle in ("yaw", "pitch"))
        pose = level_pose(_numbers(key["position"], (3,), f"{name}.position"), yaw, pitch)
    farthest = float(pose[:3, 3].abs().max())
    if farthest > FARTHEST:
        raise ValueError(f"{name}: expected places within {FARTHEST:g} m of the origin, got {farthest:g} m")
    return pose


def _numbers(value: Any, shape: tuple[int, ...], name: str) -> torch.Tensor:
    expected = f"{name}: expected {'a finite number' if shape == () else f'finite numbers {list(shape)}'}"
    try:
        numbers = torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{expected}, got {value!r}") from error
    if numbers.shape != shape or not bool(numbers.isfinite().all()):
        raise ValueError(f"{expected}, got {value!r}")
    return numbers


def _check_fields(content: Any, fields: set[str], name: str) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{name}: expected an object with {', '.join(sorted(fields))}, got {type(content).__name__}")
    unknown = sorted(set(content) - fields)
    if unknown:
        raise ValueError(f"{name}: unknown field {unknown[0]!r}; known are {', '.join(sorted(fields))}")


def _check_num_frames(num_frames: Any) -> None:
    if not isinstance(num_frames, int) or isinstance(num_frames, bool) or not 1 <= num_frames <= MAX_FRAMES:
        raise ValueError(f"frames: expected a whole number from 1 to {MAX_FRAMES}, got {num_frames!r}")
