"""A contact sheet: rows of pictures with captions on one page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from evoworld.apps.media.stills import to_uint8
from evoworld.world.atomic import atomic_path

BACKGROUND = (17, 20, 24)
TITLE_COLOR = (240, 242, 245)
CAPTION_COLOR = (168, 176, 186)
MARGIN, GAP = 40, 20
TITLE_SIZE, SUBTITLE_SIZE, CAPTION_SIZE, SMALLEST = 38, 20, 18, 13
LEADING = 1.45  # line height over letter height


@dataclass(frozen=True)
class Tile:
    """A picture (`[H, W, 3]` of 0..1, or uint8) and what is written under it."""

    image: torch.Tensor | np.ndarray
    caption: str


def _line(size: int) -> int:
    return round(size * LEADING)


def _draw_text(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, color: tuple, width: int
) -> None:
    """One line of text, made smaller, then shortened, until it fits into `width` pixels."""
    font = ImageFont.load_default(size)
    while font.getlength(text) > width and size > SMALLEST:
        size -= 1
        font = ImageFont.load_default(size)
    if font.getlength(text) > width:
        while text and font.getlength(text + "...") > width:
            text = text[:-1]
        text = text.rstrip(" ,") + "..."
    draw.text(place, text, fill=color, font=font)


def _row_height(row: Sequence[Image.Image], width: int) -> int:
    """The height at which the pictures of a row, all equally high, fill `width` pixels with their gaps."""
    return round((width - GAP * (len(row) - 1)) / sum(image.width / image.height for image in row))


def contact_sheet(
    path: str | os.PathLike,
    title: str,
    subtitle: str,
    rows: Sequence[Sequence[Tile]],
    width: int = 1600,
) -> None:
    """Writes a page of captioned pictures as PNG; each row fills the width, its pictures equally high.

    Args:
        path: where to (`.png`). Missing folders are made.
        title, subtitle: the two lines at the top.
        rows: the pictures, row by row; every row has at least one.
        width: of the page, in pixels.

    Raises:
        ValueError: no rows, or a row without pictures.
        OSError: the file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "sheet.png"
        >>> grey = torch.full((64, 128, 3), 0.5)
        >>> contact_sheet(path, "A room", "two views", [[Tile(grey, "left"), Tile(grey, "right")]], width=600)
        >>> Image.open(path).width
        600
    """
    if not rows or not all(rows):
        raise ValueError("rows: expected at least one row, each with at least one picture")
    as_pixels = [[t.image if isinstance(t.image, np.ndarray) else to_uint8(t.image) for t in row] for row in rows]
    images = [[Image.fromarray(pixels) for pixels in row] for row in as_pixels]
    inner = width - 2 * MARGIN
    heights = [_row_height(row, inner) for row in images]
    head = MARGIN + _line(TITLE_SIZE) + _line(SUBTITLE_SIZE) + GAP
    height = head + sum(heights) + len(rows) * (8 + _line(CAPTION_SIZE) + GAP) + MARGIN - GAP
    page = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(page)
    _draw_text(draw, (MARGIN, MARGIN), title, TITLE_SIZE, TITLE_COLOR, inner)
    _draw_text(draw, (MARGIN, MARGIN + _line(TITLE_SIZE)), subtitle, SUBTITLE_SIZE, CAPTION_COLOR, inner)
    top = head
    for tiles, row, row_height in zip(rows, images, heights, strict=True):
        left = float(MARGIN)
        for tile, image in zip(tiles, row, strict=True):
            tile_width = image.width / image.height * row_height
            place = (round(left), top)
            size = (round(left + tile_width) - place[0], row_height)
            page.paste(image.resize(size, Image.Resampling.LANCZOS), place)
            _draw_text(draw, (place[0], top + row_height + 8), tile.caption, CAPTION_SIZE, CAPTION_COLOR, size[0])
            left += tile_width + GAP
        top += row_height + 8 + _line(CAPTION_SIZE) + GAP
    with atomic_path(path) as temporary:
        page.save(temporary, format="PNG")
