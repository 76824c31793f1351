"""A picture to start a world from: any file that Pillow reads, checked and brought to a size that a model can use."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

SMALLEST = 8  # pixels along each side
LARGEST = 32768  # pixels along each side
KEPT = 2048  # pixels of the longer side that are kept: twice what the largest model sees
PANORAMA_TOLERANCE = 0.01  # of the ratio: a panorama whose width is odd is still one
WIDEST, NARROWEST = 170.0, 5.0  # degrees of a perspective photo


def read_photo(path: str | os.PathLike, fov: float | None = None) -> torch.Tensor:  # [H, W, 3]
    """The colours of a panorama, or of a perspective photo.

    Grey, palette and CMYK pictures become RGB, transparent parts white, and a camera's orientation mark is followed.
    Large pictures are made smaller, each pixel the mean of those that it stands for.

    Args:
        path: of the file.
        fov: horizontal field of view in degrees of a perspective photo; None: the picture is a panorama.

    Returns:
        `[H, W, 3]` float32, 0 to 1, at most 2048 pixels along the longer side; a panorama's W is 2H.

    Raises:
        ValueError: no picture, a damaged one, one of another shape than 2:1 without `fov`, too small or too large, or a
            field of view that no lens has; the message names the file.
        OSError: the file cannot be read.
    """
    if fov is not None and not NARROWEST <= fov <= WIDEST:
        raise ValueError(f"--fov: expected {NARROWEST:g} to {WIDEST:g} degrees, got {fov:g}")
    path = Path(path)
    path.open("rb").close()  # a file that is missing is no damaged picture
    try:
        image = _decode(path)
    except (_PhotoError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: too many pixels ({error}); make it smaller") from error
    except Exception as error:  # whatever a decoder stumbles over
        raise ValueError(f"{path}: not a picture, or a damaged one ({' '.join(str(error).split())})") from error
    width, height = image.size
    if fov is None and abs(width / height - 2) > 2 * PANORAMA_TOLERANCE:
        raise ValueError(
            f"{path}: expected a panorama, twice as wide as high, got {width} x {height}; "
            "for a perspective photo give its horizontal field of view in degrees with --fov"
        )
    scale = min(1.0, KEPT / max(width, height))
    height = max(1, round(height * scale))
    size = (2 * height if fov is None else max(1, round(width * scale)), height)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image, np.float32) / 255)


class _PhotoError(ValueError):
    """What is wrong with a picture that can be decoded."""


def _decode(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # 16k is large, and meant
        image = Image.open(path)
    with image:
        size = f"{image.width} x {image.height}"
        if min(image.size) < SMALLEST:
            raise _PhotoError(f"{path}: expected at least {SMALLEST} x {SMALLEST} pixels, got {size}")
        if max(image.size) > LARGEST:
            raise _PhotoError(f"{path}: expected at most {LARGEST} pixels along a side, got {size}")
        image.draft("RGB", (KEPT, KEPT))  # a JPEG is decoded at the fraction of its size that is needed
        return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16-bit grey, and floating point of 0..1: Pillow would clip both
        values = np.asarray(image, np.float32) * (255 if image.mode == "F" else 255 / 65535)
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
