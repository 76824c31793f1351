"""Panoramic photographs without depth, as walks of one frame."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from .files import CaptureError, image_size, read_image
from .level import level_panorama
from .walk import Walk, level_poses

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class PhotoPanoramas(Sequence[Walk]):
    """The panoramas of a folder, by name: walks of a single frame without depth, which stands at the origin.

    The sentence in a text file of the same name (``garden.txt`` beside ``garden.jpg``) is the caption.

    Args:
        folder: with level equirectangular photographs, twice as wide as high.
        height: H to bring them to.

    Raises:
        CaptureError: there is no such folder, it holds no photographs, or one is not a 2:1 image that can be read.
        ValueError: ``height`` is not positive.

    Example:
        >>> photo = PhotoPanoramas("examples/living_room/rgb", height=16)[0]
        >>> photo.image.shape, photo.depth is None
        (torch.Size([1, 16, 32, 3]), True)
    """

    def __init__(self, folder: str | os.PathLike, height: int = 64) -> None:
        if height < 1:
            raise ValueError(f"height: expected at least 1, got {height}")
        folder = Path(folder)
        if not folder.is_dir():
            raise CaptureError(f"{folder}: no such folder")
        self.paths = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES))
        if not self.paths:
            raise CaptureError(f"{folder}: expected photographs ({' '.join(_SUFFIXES)}), got none")
        for path in self.paths:
            rows, columns = image_size(path)
            if columns != 2 * rows:
                raise CaptureError(f"{path}: expected a panorama twice as wide as high, got {columns}x{rows}")
        self.height = height
        captions = [path.with_suffix(".txt") for path in self.paths]
        files = [f"{path} {path.stat().st_mtime_ns}" for path in (*self.paths, *filter(Path.is_file, captions))]
        self.identity = f"photographs {height} {files}"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Walk:
        path = self.paths[index]
        image, _ = level_panorama(read_image(path, image_size(path)), None, torch.eye(3), self.height)
        words = path.with_suffix(".txt")
        caption = " ".join(words.read_text(encoding="utf-8").split()) if words.is_file() else ""
        return Walk(image[None], None, level_poses(torch.zeros(1, 3), 0.0), (caption,), path.stem)
