"""Image and depth files: to tensors and back, and what is wrong with them in one line."""

from __future__ import annotations

import math
import struct
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

# What Pillow and NumPy raise on files that are unreadable, truncated, damaged or of another format.
_FILE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_COLOUR_MODES = ("RGB", "RGBA", "RGBX", "L", "LA", "P", "CMYK", "YCbCr")  # 8 bits a channel
_DEPTH_MODES = ("I;16", "I;16B", "I;16L", "I")  # 16 bit greyscale; Pillow before 11 opened some of them as "I"
_LARGEST_DEPTH_VALUE = 65535

DEPTH_UNITS = {".png": 0.001, ".npy": 1.0}  # of depth folders that do not state a unit: millimetres, metres


class CaptureError(ValueError):
    """A capture cannot be read; the message is one line that names the file and what was expected."""


def one_line(error: BaseException) -> str:
    """The error's message without line breaks; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image or .npy file, read from its header only.

    Raises:
        CaptureError: there is no such file, or it is neither an image nor a two-dimensional array.
    """
    with _explain(path, "an array [H, W]" if _is_array(path) else "an image"):
        if _is_array(path):
            height, width = _squeeze(np.load(path, mmap_mode="r", allow_pickle=False)).shape
        else:
            with Image.open(path) as image:
                width, height = image.size
    return height, width


def read_image(path: Path, size: tuple[int, int]) -> torch.Tensor:
    """An 8-bit colour or grey image as [H, W, 3] float32 in 0..1; an alpha channel is dropped.

    Raises:
        CaptureError: the file is missing, damaged, of another size than (height, width), or has more than 8 bits.
    """
    with _explain(path, "an image"), Image.open(path) as image:
        if image.mode not in _COLOUR_MODES:
            raise CaptureError(f"{path}: expected an image of 8 bits a channel, got Pillow mode {image.mode}")
        pixels = np.array(image.convert("RGB"))
    _check_size(path, pixels, size)
    return torch.from_numpy(pixels).to(torch.float32) / 255


def read_depth(path: Path, size: tuple[int, int], unit: float) -> torch.Tensor:
    """A depth file times `unit` (metres) as [H, W] float32; 0 where there is nothing.

    16-bit greyscale images and .npy arrays, integer or floating. Values that are not finite or not positive become 0.

    Raises:
        CaptureError: the file is missing, damaged, of another size or kind, or no value in it is valid.
    """
    with _explain(path, "an array [H, W]" if _is_array(path) else "a depth image"):
        if _is_array(path):
            values = _squeeze(np.load(path, allow_pickle=False))
            if values.dtype.kind not in "fiu":
                raise CaptureError(f"{path}: expected an array of numbers, got dtype {values.dtype}")
        else:
            with Image.open(path) as image:
                if image.mode not in _DEPTH_MODES:
                    raise CaptureError(f"{path}: expected a 16-bit greyscale depth image, got Pillow mode {image.mode}")
                values = np.array(image)
    _check_size(path, values, size)
    depth = values.astype(np.float64) * unit
    depth[~(np.isfinite(depth) & (depth > 0))] = 0
    if not depth.any():
        raise CaptureError(f"{path}: expected some valid depth, got none that is finite and positive")
    return torch.from_numpy(depth).to(torch.float32)


def depth_beside(folder: Path, stem: str) -> Path | None:
    """The depth file `stem`.png or .npy of a depth folder; None without the folder, CaptureError without the file.

    DEPTH_UNITS says what their values are: 16-bit millimetres, floating-point metres.
    """
    if not folder.is_dir():
        return None
    candidates = [folder / f"{stem}{suffix}" for suffix in DEPTH_UNITS]
    for path in candidates:
        if path.is_file():
            return path
    raise CaptureError(f"{candidates[0]}: no such file, nor {candidates[1].name} (a depth folder covers every frame)")


def write_image(
    path: Path,
    image: torch.Tensor,  # [H, W, 3]
) -> None:
    """Write colours in 0..1 as an 8-bit image, rounded; the suffix of the path names the format.

    Raises:
        ValueError: the image holds NaN or infinite values.
    """
    if not image.isfinite().all():
        raise ValueError(f"{path}: expected finite colours, got NaN or infinite ones")
    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)


def write_depth(
    path: Path,
    depth: torch.Tensor,  # [H, W]
    unit: float,
) -> None:
    """Write depth (metres) as a 16-bit PNG of multiples of `unit`; what is not finite or not positive becomes 0.

    Raises:
        ValueError: no depth is valid, or one does not fit 16 bits of this unit; the message names a unit that does.
    """
    depth = depth.detach().cpu().double()
    depth = torch.where(torch.isfinite(depth) & (depth > 0), depth, 0)
    values = (depth / unit).round()
    if values.max() > _LARGEST_DEPTH_VALUE:
        enough = math.ceil(float(depth.max()) / _LARGEST_DEPTH_VALUE * 1e4) / 1e4
        raise ValueError(
            f"{path}: a depth of {float(depth.max()):g} m does not fit 16 bits of {unit:g} m, a unit of {enough:g} does"
        )
    if not values.any():
        raise ValueError(f"{path}: expected some valid depth, got none that is finite and positive")
    Image.fromarray(values.numpy().astype(np.uint16)).save(path, format="PNG")


@contextmanager
def _explain(path: Path, expected: str) -> Iterator[None]:
    """Turn what the readers of images and arrays raise into a CaptureError."""
    try:
        yield
    except CaptureError:
        raise
    except FileNotFoundError:
        raise CaptureError(f"{path}: no such file") from None
    except _FILE_ERRORS as error:
        raise CaptureError(f"{path}: expected {expected} that can be read, got: {one_line(error)}") from error


def _is_array(path: Path) -> bool:
    return path.suffix.lower() == ".npy"


def _squeeze(array: np.ndarray) -> np.ndarray:
    """[H, W] or [H, W, 1] as [H, W]."""
    if not isinstance(array, np.ndarray):
        raise ValueError("an archive of arrays")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2:
        raise ValueError(f"shape {list(array.shape)}")
    return array


def _check_size(path: Path, array: np.ndarray, size: tuple[int, int]) -> None:
    if array.shape[:2] != size:
        raise CaptureError(size_message(path, array.shape[:2], size))


def size_message(path: Path, got: tuple[int, ...], expected: tuple[int, int]) -> str:
    """What to say of a file whose (height, width) differs from its camera's."""
    return f"{path}: expected {expected[0]}x{expected[1]} (height x width), got {got[0]}x{got[1]}"
