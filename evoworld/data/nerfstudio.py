"""nerfstudio's layout: `transforms.json` beside its images; read and written."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evoworld.geometry import Camera, Panorama, Pinhole, pose_from_opengl

from .capture import Capture, FrameFiles, rigid_pose, unique_names
from .files import CaptureError, one_line, write_depth, write_image

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .capture import Frame

TRANSFORMS = "transforms.json"

_PINHOLE_MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE")  # without distortion they are all the same
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
_LARGEST = sys.float_info.max
_MILLIMETRE = 0.001  # nerfstudio's depth_unit_scale_factor where the file states none


def read_nerfstudio(path: str | Path) -> Capture:
    """Read a `transforms.json`, https://docs.nerf.studio/quickstart/data_conventions.html.

    Understood, in the file or, with precedence, in a frame:

    * `camera_model`: EQUIRECTANGULAR with `w`, `h`; OPENCV (the default) or PINHOLE with `w`, `h`, `fl_x`, `fl_y`,
      `cx`, `cy`. Distortion coefficients must be absent or zero.
    * `transform_matrix`: camera-to-world, OpenGL camera axes, world with z up. nerfstudio has already applied
      `applied_transform` to it, so that is not applied again; an `applied_scale` other than 1 is refused, because
      depth would be in another unit than the positions.
    * `depth_file_path`: 16-bit images or .npy arrays, times `depth_unit_scale_factor` (0.001) metres. `depth_type`
      says what a pinhole's depth is: `z` (the default) or `range`; a panorama's depth is always the range.
    * `time` or `timestamp`: seconds.

    Masks are not used.

    Args:
        path: the JSON file, or the folder that holds transforms.json. Paths in it are relative to its folder.

    Raises:
        CaptureError: anything above that is missing, malformed or contradictory, in one line.
    """
    path = Path(path)
    file = path / TRANSFORMS if path.is_dir() else path
    content = _read_json(file)
    entries = content.pop("frames", None)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CaptureError(f"{file}: expected a list of objects under 'frames', got {_describe(entries)}")
    frames = []
    sources = [f"{file} frame {index}" for index in range(len(entries))]
    names = unique_names([_string(source, entry, "file_path") for source, entry in zip(sources, entries, strict=True)])
    for source, entry, name in zip(sources, entries, names, strict=True):
        frames.append(_frame(file.parent, source, name, {**content, **entry}))
    folder = file.resolve().parent
    return Capture(folder.name if file.name == TRANSFORMS else f"{folder.name}_{file.stem}", frames, source=file)


def write_capture(
    path: str | Path,
    camera: Camera,
    frames: Iterable[Frame],
    depth_unit: float = _MILLIMETRE,
) -> Path:
    """Write frames as a nerfstudio capture that read_capture reads back: `transforms.json`, `rgb/` and `depth/`.

    Frames are written one at a time as they come, the list last and in one step: a folder that holds transforms.json
    is complete.

    Args:
        path: folder, made if it is not there.
        camera: Panorama or Pinhole, of all frames.
        frames: images are written as 8-bit PNG, depth (if a frame has one) as 16-bit PNG: rounded to 1/255 and to
            depth_unit. Files are named 0000, 0001, ...
        depth_unit: metres of one count; the default reaches 65 m.

    Returns:
        the path of transforms.json.

    Raises:
        ValueError: no frames, a frame of another camera, a pose that is not rigid, a depth beyond 65535 depth_unit,
            or depth without a valid value.

    >>> import tempfile
    >>> from evoworld.data import Frame, read_capture
    >>> frame = Frame(torch.zeros(4, 8, 3), torch.full((4, 8), 2.5), torch.eye(4), Panorama(4, 8), "first")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = write_capture(folder, frame.camera, [frame])
    ...     float(read_capture(folder)[0].depth[0, 0])
    2.5
    """
    if not isinstance(camera, (Panorama, Pinhole)):
        raise ValueError(f"camera: expected a Panorama or Pinhole, got {camera}")
    if not depth_unit > 0:
        raise ValueError(f"depth_unit: expected a positive number of metres, got {depth_unit}")
    path = Path(path)
    (path / "rgb").mkdir(parents=True, exist_ok=True)
    entries = []
    for index, frame in enumerate(frames):
        entries.append(_write_frame(path, index, camera, frame, depth_unit))
    if not entries:
        raise ValueError("frames: expected at least one, got none")
    content = {**_camera_entries(camera), "depth_unit_scale_factor": depth_unit, "frames": entries}
    temporary = path / (TRANSFORMS + ".tmp")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, path / TRANSFORMS)
    return path / TRANSFORMS


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CaptureError(f"{file}: expected a JSON file that can be read, got: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise CaptureError(f"{file}: expected a JSON object, got {_describe(content)}")
    return content


def _frame(folder: Path, source: str, name: str, entry: dict[str, Any]) -> FrameFiles:
    camera = _camera(source, entry)
    depth = folder / _string(source, entry, "depth_file_path") if entry.get("depth_file_path") is not None else None
    if depth is not None and (scale := _number(source, entry, "applied_scale", 1.0)) != 1:
        raise CaptureError(f"{source}: expected applied_scale 1 (positions and depth in one unit), got {scale:g}")
    unit = _number(source, entry, "depth_unit_scale_factor", _MILLIMETRE)
    if unit <= 0:
        raise CaptureError(f"{source}: expected a positive depth_unit_scale_factor, got {unit:g}")
    time_key = "time" if "time" in entry else "timestamp"
    return FrameFiles(
        name=name,
        camera=camera,
        camera_to_world=_pose(source, entry),
        image=folder / _string(source, entry, "file_path"),
        depth=depth,
        depth_unit=unit,
        depth_is_range=_depth_is_range(source, entry, camera),
        timestamp=_number(source, entry, time_key) if entry.get(time_key) is not None else None,
    )


def _camera(source: str, entry: dict[str, Any]) -> Camera:
    model = entry.get("camera_model", "OPENCV")
    for key in _DISTORTION:
        if value := _number(source, entry, key, 0.0):
            raise CaptureError(f"{source}: expected images without distortion, got {key} = {value:g}: undistort them")
    height, width = _number(source, entry, "h"), _number(source, entry, "w")
    if height % 1 or width % 1:
        raise CaptureError(f"{source}: expected whole numbers of pixels, got h = {height:g} and w = {width:g}")
    try:
        if model == "EQUIRECTANGULAR":
            return Panorama(int(height), int(width))
        if model in _PINHOLE_MODELS:
            intrinsics = (_number(source, entry, key) for key in ("fl_x", "fl_y", "cx", "cy"))
            return Pinhole(int(height), int(width), *intrinsics)
    except CaptureError:
        raise
    except ValueError as error:
        raise CaptureError(f"{source}: {one_line(error)}") from error
    known = ", ".join(("EQUIRECTANGULAR", *_PINHOLE_MODELS))
    raise CaptureError(f"{source}: expected a camera_model out of {known}, got {model!r}")


def _pose(source: str, entry: dict[str, Any]) -> torch.Tensor:
    try:
        matrix = torch.tensor(entry.get("transform_matrix"), dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        matrix = torch.empty(0)
    if matrix.shape != (4, 4):
        got = _describe(entry.get("transform_matrix"))
        raise CaptureError(f"{source}: expected a transform_matrix of 4 rows of 4 numbers, got {got}")
    return rigid_pose(f"{source} transform_matrix", pose_from_opengl(matrix))


def _depth_is_range(source: str, entry: dict[str, Any], camera: Camera) -> bool:
    kind = entry.get("depth_type", "range" if isinstance(camera, Panorama) else "z")
    if kind not in ("range", "z") or (kind == "z" and isinstance(camera, Panorama)):
        expected = "'range'" if isinstance(camera, Panorama) else "'range' or 'z'"
        raise CaptureError(f"{source}: expected a depth_type of {expected}, got {kind!r}")
    return kind == "range"


def _string(source: str, entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise CaptureError(f"{source}: expected a file name under {key!r}, got {_describe(value)}")
    return value


def _number(source: str, entry: dict[str, Any], key: str, default: float | None = None) -> float:
    value = entry.get(key, default)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not -_LARGEST < value < _LARGEST:
        raise CaptureError(f"{source}: expected a finite number under {key!r}, got {_describe(value)}")
    return float(value)


def _describe(value: object) -> str:
    """A value of a JSON file in a few words."""
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _camera_entries(camera: Panorama | Pinhole) -> dict[str, Any]:
    size = {"w": camera.width, "h": camera.height}
    if isinstance(camera, Panorama):
        return {"camera_model": "EQUIRECTANGULAR", **size, "depth_type": "range"}
    focal = {"fl_x": camera.fx, "fl_y": camera.fy, "cx": camera.cx, "cy": camera.cy}
    return {"camera_model": "PINHOLE", **size, **focal, "depth_type": "z"}


def _write_frame(path: Path, index: int, camera: Camera, frame: Frame, depth_unit: float) -> dict[str, Any]:
    if frame.camera != camera:
        raise ValueError(f"frames[{index}]: expected {camera}, got {frame.camera}")
    pose = rigid_pose(f"frames[{index}].camera_to_world", frame.camera_to_world.detach().cpu().double())
    entry: dict[str, Any] = {"file_path": f"rgb/{index:04d}.png"}
    _check_shape(f"frames[{index}].image", frame.image, (camera.height, camera.width, 3))
    write_image(path / entry["file_path"], frame.image)
    if frame.depth is not None:
        entry["depth_file_path"] = f"depth/{index:04d}.png"
        (path / "depth").mkdir(exist_ok=True)
        _check_shape(f"frames[{index}].depth", frame.depth, (camera.height, camera.width))
        write_depth(path / entry["depth_file_path"], frame.depth, depth_unit)
    if frame.timestamp is not None:
        entry["time"] = frame.timestamp
    entry["transform_matrix"] = pose_from_opengl(pose).tolist()
    return entry


def _check_shape(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
