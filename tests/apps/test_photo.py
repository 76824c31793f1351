"""Pictures that worlds start from: every kind that people have, and every kind that is broken."""

import numpy as np
import pytest
import torch
from PIL import Image

from evoworld.apps.photo import read_photo

RED = (200, 40, 60)


def saved(tmp_path, image, name="photo.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def colour(image):
    return (image.mean((0, 1)) * 255).round().int().tolist()


def test_a_panorama_comes_as_it_is(tmp_path):
    pixels = torch.randint(0, 256, (16, 32, 3), dtype=torch.uint8)
    image = read_photo(saved(tmp_path, Image.fromarray(pixels.numpy())))
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, pixels / 255)


@pytest.mark.parametrize(
    ("mode", "value", "expected", "name"),
    [
        ("RGB", RED, list(RED), "a.jpg"),
        ("CMYK", (0, 255, 255, 0), [255, 0, 0], "a.tif"),
        ("CMYK", (0, 255, 255, 0), [254, 0, 0], "a.jpg"),
        ("RGBA", (*RED, 255), list(RED), "a.png"),
        ("RGBA", (*RED, 0), [255, 255, 255], "a.png"),
        ("LA", (90, 255), [90, 90, 90], "a.png"),
        ("L", 90, [90, 90, 90], "a.png"),
        ("P", 0, [0, 0, 0], "a.gif"),
        ("I;16", 65535, [255, 255, 255], "a.png"),
        ("F", 0.5, [127, 127, 127], "a.tif"),
        ("1", 1, [255, 255, 255], "a.png"),
    ],
)
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode, value, expected, name):
    image = read_photo(saved(tmp_path, Image.new(mode, (32, 16), value), name))
    assert image.shape == (16, 32, 3)
    assert np.abs(np.subtract(colour(image), expected)).max() <= 2


def test_a_large_panorama_is_made_smaller_by_its_means(tmp_path):
    pixels = np.zeros((2200, 4400, 3), np.uint8)
    pixels[::2] = 200  # stripes that picking pixels would make all dark or all bright
    image = read_photo(saved(tmp_path, Image.fromarray(pixels)))
    assert image.shape == (1024, 2048, 3)
    torch.testing.assert_close(image, torch.full_like(image, 100 / 255), atol=0.15, rtol=0)


def test_16k_is_read(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (16384, 8192), RED), "large.jpg")
    image = read_photo(path)
    assert image.shape == (1024, 2048, 3) and np.abs(np.subtract(colour(image), RED)).max() <= 2


def test_the_camera_s_orientation_is_followed(tmp_path):
    turned = Image.new("RGB", (16, 32), RED)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_photo(saved(tmp_path, turned, "turned.jpg", exif=exif)).shape == (16, 32, 3)


def test_a_perspective_photo_needs_its_field_of_view(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (30, 20), RED))
    with pytest.raises(ValueError, match="--fov"):
        read_photo(path)
    assert read_photo(path, fov=70).shape == (20, 30, 3)
    for fov in (0, -5, 180, float("nan")):
        with pytest.raises(ValueError, match="--fov"):
            read_photo(path, fov=fov)


def test_broken_pictures_are_told_by_name(tmp_path):
    whole = saved(tmp_path, Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 128, 3), np.uint8)))
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:2000])
    broken = bytearray(whole.read_bytes())
    broken[100:200] = bytes(100)
    (tmp_path / "broken.png").write_bytes(broken)
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    jpeg = saved(tmp_path, Image.open(whole), "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    for name in ("cut.png", "broken.png", "text.jpg", "empty.jpg", "cut.jpg"):
        with pytest.raises(ValueError, match=f"{name}.*damaged"):
            read_photo(tmp_path / name)


def test_sizes_that_cannot_be(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="at least 8 x 8 pixels, got 1 x 1"):
        read_photo(saved(tmp_path, Image.new("RGB", (1, 1))), fov=90)
    with pytest.raises(ValueError, match="at most 32768"):
        read_photo(saved(tmp_path, Image.new("L", (40000, 10))), fov=90)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="too many pixels"):
        read_photo(saved(tmp_path, Image.new("L", (64, 32))))
    with pytest.raises(FileNotFoundError):
        read_photo(tmp_path / "nowhere.jpg")
