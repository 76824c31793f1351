"""COLMAP models of panorama or pinhole cameras, read by pycolmap (an optional dependency)."""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import torch

from evoworld.geometry import Camera, Panorama, Pinhole

from .capture import Capture, FrameFiles, rigid_pose, unique_names
from .files import DEPTH_UNITS, CaptureError, depth_beside, one_line

if TYPE_CHECKING:
    import pycolmap

_PARTS = ("rigs", "cameras", "frames", "images")
_NO_POINTS = {".bin": bytes(8), ".txt": b""}  # a count of zero
_MODELS = "EQUIRECTANGULAR, PINHOLE and SIMPLE_PINHOLE"


def find_model(path: Path) -> Path | None:
    """The folder of the model of a capture, `sparse/0` or `sparse`; None if there is none."""
    for folder in (path / "sparse" / "0", path / "sparse"):
        if any((folder / f"cameras.{suffix}").is_file() for suffix in ("bin", "txt")):
            return folder
    return None


def read_colmap(path: str | Path) -> Capture:
    """Read a folder with a COLMAP model in `sparse/0` (or `sparse`), text or binary, and its images in `images/`.

    * Cameras: EQUIRECTANGULAR, PINHOLE and SIMPLE_PINHOLE; other images want undistorting first
      (`colmap image_undistorter`). Images that the model could not place are left out; the others are sorted by name.
    * A COLMAP model has no scale and no up of its own: the world is kept as it is, and is metric with z up only if
      the model was made so (`colmap model_aligner`, `model_orientation_aligner`, or known camera positions).
    * Optionally `depth/`, with the folders and names of `images/`: .png, 16 bit, thousandths of the model's unit, or
      .npy, float32, in the model's unit. Range for panoramas, z-depth for pinholes; 0 where there is nothing.

    Source: https://colmap.github.io/format.html.

    Raises:
        CaptureError: pycolmap is not installed, the model cannot be read or has no placed image, a camera model that
            is not supported, or a file that is missing; one line.
    """
    path = Path(path)
    model = find_model(path)
    if model is None:
        raise CaptureError(f"{path / 'sparse' / '0'}: expected a COLMAP model (cameras.bin or cameras.txt), got none")
    images = [image for image in _read_model(model).images.values() if image.has_pose]
    images.sort(key=lambda image: image.name)
    frames = []
    for image, name in zip(images, unique_names([image.name for image in images]), strict=True):
        source = f"{model} image {image.name}"
        depth = depth_beside(path / "depth", str(PurePosixPath(image.name).with_suffix("")))
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3] = torch.from_numpy(image.cam_from_world().inverse().matrix())
        frames.append(
            FrameFiles(
                name=name,
                camera=_camera(source, image.camera),
                camera_to_world=rigid_pose(source, pose),
                image=path / "images" / image.name,
                depth=depth,
                depth_unit=DEPTH_UNITS[depth.suffix] if depth else 1.0,
            )
        )
    return Capture(path.resolve().name, frames, source=model)


def _read_model(folder: Path) -> pycolmap.Reconstruction:
    """The model without its 3D points, which are most of it and not needed."""
    try:
        import pycolmap
    except ImportError:
        raise CaptureError(f"{folder}: a COLMAP model needs pycolmap: pip install 'evoworld[colmap]'") from None
    suffix = ".bin" if (folder / "cameras.bin").is_file() else ".txt"
    with tempfile.TemporaryDirectory() as scratch:
        for name in _PARTS:
            if (folder / name).with_suffix(suffix).is_file():
                (Path(scratch) / name).with_suffix(suffix).symlink_to((folder / name).with_suffix(suffix).resolve())
        (Path(scratch) / "points3D").with_suffix(suffix).write_bytes(_NO_POINTS[suffix])
        try:
            model = pycolmap.Reconstruction(scratch)
        except Exception as error:  # the C++ reader raises whatever a damaged file leads it to
            raise CaptureError(f"{folder}: expected a COLMAP model that can be read, got: {one_line(error)}") from error
    if suffix == ".bin":
        _check_complete(folder, model)
    return model


def _check_complete(folder: Path, model: pycolmap.Reconstruction) -> None:
    """Binary files that end early can be read without an error; they are shorter than what was read from them."""
    with tempfile.TemporaryDirectory() as scratch:
        model.write_binary(scratch)
        for name in _PARTS:
            file = folder / f"{name}.bin"
            if file.is_file() and (size := file.stat().st_size) < (full := (Path(scratch) / file.name).stat().st_size):
                raise CaptureError(f"{file}: expected {full} bytes, got {size}: the file is truncated")


def _camera(source: str, camera: pycolmap.Camera) -> Camera:
    try:
        if camera.model.name == "EQUIRECTANGULAR":
            return Panorama(camera.height, camera.width)
        if camera.model.name == "SIMPLE_PINHOLE":
            focal, cx, cy = camera.params
            return Pinhole(camera.height, camera.width, focal, focal, cx, cy)
        if camera.model.name == "PINHOLE":
            return Pinhole(camera.height, camera.width, *camera.params)
    except ValueError as error:
        raise CaptureError(f"{source}: {one_line(error)}") from error
    raise CaptureError(f"{source}: expected a camera out of {_MODELS}, got {camera.model.name}: undistort the images")
