"""Stills, depth images and contact sheets."""

import xml.etree.ElementTree as ET
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from evoworld.apps.media import (
    Tile,
    add_gpano,
    atomic_path,
    color_map,
    contact_sheet,
    depth_preview,
    depth_unit,
    to_uint8,
    write_still,
)

GPANO = "{http://ns.google.com/photos/1.0/panorama/}"


def random_panorama(height=16):
    return torch.rand(height, 2 * height, 3, generator=torch.Generator().manual_seed(0))


def xmp_of_jpeg(data):
    """The XMP packet of a JPEG file: the APP1 segment with Adobe's name in front."""
    position = 2
    while data[position] == 0xFF and data[position + 1] != 0xDA:
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        segment = data[position + 4 : position + 2 + length]
        if data[position + 1] == 0xE1 and segment.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            return segment.split(b"\0", 1)[1]
        position += 2 + length
    raise AssertionError("no XMP")


def xmp_of_png(data):
    """The XMP packet of a PNG file: the iTXt chunk with the keyword that Adobe's specification gives it."""
    position = 8
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        kind, payload = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        if kind == b"iTXt" and payload.startswith(b"XML:com.adobe.xmp\0"):
            compressed = payload[18]
            text = payload[20:].split(b"\0", 2)[2]
            return zlib.decompress(text) if compressed else text
        position += 12 + length
    raise AssertionError("no XMP")


@pytest.mark.parametrize(("name", "xmp_of"), [("a.jpg", xmp_of_jpeg), ("a.JPEG", xmp_of_jpeg), ("a.png", xmp_of_png)])
def test_panorama_stills_carry_gpano(tmp_path, name, xmp_of):
    write_still(tmp_path / name, random_panorama(), panorama=True)
    description = ET.fromstring(xmp_of((tmp_path / name).read_bytes()).split(b"?>", 1)[1].rsplit(b"<?", 1)[0])[0][0]
    tags = {key.removeprefix(GPANO): value for key, value in description.attrib.items() if key.startswith(GPANO)}
    assert tags["ProjectionType"] == "equirectangular" and tags["UsePanoramaViewer"] == "True"
    assert tags["FullPanoWidthPixels"] == tags["CroppedAreaImageWidthPixels"] == "32"
    assert tags["FullPanoHeightPixels"] == tags["CroppedAreaImageHeightPixels"] == "16"
    assert tags["CroppedAreaLeftPixels"] == tags["CroppedAreaTopPixels"] == "0"


def test_png_still_keeps_every_pixel_and_a_perspective_view_says_nothing(tmp_path):
    image = random_panorama()
    write_still(tmp_path / "a.png", image, panorama=False)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), to_uint8(image))
    assert b"GPano" not in (tmp_path / "a.png").read_bytes()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("a.gif", (16, 32, 3), r"\.png or \.jpg"),
        ("a.png", (16, 31, 3), "twice as wide"),
        ("a.png", (16, 32), "H, W, 3"),
    ],
)
def test_bad_stills_are_refused(tmp_path, name, shape, message):
    with pytest.raises(ValueError, match=message):
        write_still(tmp_path / name, torch.zeros(shape), panorama=True)
    assert not list(tmp_path.iterdir())


def test_marking_a_png_twice_leaves_one_mark_and_the_pixels(tmp_path):
    write_still(tmp_path / "a.png", random_panorama(), panorama=False)
    before = np.asarray(Image.open(tmp_path / "a.png"))
    add_gpano(tmp_path / "a.png")
    once = (tmp_path / "a.png").read_bytes()
    add_gpano(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == once
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), before)
        assert "equirectangular" in image.info["XML:com.adobe.xmp"]


def test_marking_something_else_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match="PNG"):
        add_gpano(tmp_path / "a.png")


@pytest.mark.parametrize("max_depth", [0.0, 1.0, 65.535, 65.536, 131.07, 131.08, 655.35, 5000.0, 1e6])
def test_depth_unit_is_the_smallest_that_fits(max_depth):
    unit = depth_unit(max_depth)
    assert max_depth <= 65535 * unit * (1 + 1e-12)
    smaller = {1: 2, 2: 2, 5: 2.5}[int(f"{unit:.0e}"[0])]
    assert unit == 0.001 or max_depth > 65535 * unit / smaller


def test_depth_unit_refuses_what_is_no_distance():
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="max_depth"):
            depth_unit(bad)


def test_preview_shows_near_red_and_far_blue_and_nothing_black():
    preview = depth_preview(torch.tensor([[1.0, 2.0, 4.0, 0.0, float("nan")]]))[0].astype(int)
    assert preview[0, 0] > preview[0, 2] and preview[2, 2] > preview[2, 1]
    assert (preview[3:] == 0).all()
    assert (depth_preview(torch.zeros(2, 4)) == 0).all()
    assert (depth_preview(torch.full((2, 4), 3.0)) == depth_preview(torch.full((2, 4), 3.0))[0, 0]).all()


def test_color_map_is_smooth():
    steps = np.abs(np.diff(color_map(np.linspace(0, 1, 1001)).astype(int), axis=0))
    assert steps.max() <= 2


def test_contact_sheet_places_each_picture_unmixed(tmp_path):
    red, green = torch.zeros(20, 40, 3), torch.zeros(20, 20, 3)
    red[..., 0], green[..., 1] = 1, 1
    contact_sheet(tmp_path / "s.png", "T", "S" * 400, [[Tile(red, "r"), Tile(green, "g")], [Tile(red, "")]], width=400)
    page = np.asarray(Image.open(tmp_path / "s.png")).astype(int)
    reds = ((page == [255, 0, 0]).all(-1)).sum(0)
    greens = ((page == [0, 255, 0]).all(-1)).sum(0)
    assert page.shape[1] == 400
    assert greens.argmax() > 200 > (greens > 0).sum()
    assert (reds > 0).sum() == 320


def test_a_long_caption_stays_under_its_picture(tmp_path):
    grey = torch.full((20, 40, 3), 0.5)
    contact_sheet(tmp_path / "s.png", "T", "S", [[Tile(grey, 60 * "a long word "), Tile(grey, "")]], width=400)
    page = np.asarray(Image.open(tmp_path / "s.png")).astype(int)
    below = page[(page == 128).all(-1).any(1).nonzero()[0].max() + 1 :]  # the rows under the pictures
    written = (below != below[-1, -1]).any(-1).any(0).nonzero()[0]
    assert 150 < written.max() < 200


def test_contact_sheet_without_pictures_is_refused(tmp_path):
    for rows in ([], [[]]):
        with pytest.raises(ValueError, match="rows"):
            contact_sheet(tmp_path / "s.png", "T", "S", rows)


def test_atomic_path_leaves_the_old_file_when_writing_fails(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_errors_of_writing_name_the_file_that_was_asked_for(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OSError, match=r"folder\.png"):
        write_still(tmp_path / "folder.png", random_panorama(), panorama=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_still(tmp_path / "file" / "a.png", random_panorama(), panorama=True)
