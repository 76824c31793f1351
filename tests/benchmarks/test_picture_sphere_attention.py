"""The picture of README: made of what it says, and small enough to ship."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import picture_sphere_attention
from evoworld.geometry import Panorama, sample_panorama

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(picture_sphere_attention, "PIXELS", Panorama(24, 48))
    monkeypatch.setattr(picture_sphere_attention, "KEYS", Panorama(12, 24))


def test_it_has_six_tiles():
    panorama = torch.rand(48, 96, 3, generator=torch.Generator().manual_seed(0))
    picture = picture_sphere_attention.picture(panorama)
    gap = picture_sphere_attention.GAP
    assert picture.shape == (2 * 24 + gap, 3 * 48 + 2 * gap, 3)
    assert picture.isfinite().all() and (picture[24 : 24 + gap] == 1).all()


def test_blurs_keep_a_constant():
    image = torch.full((24, 48, 3), 0.25)
    for blur in (picture_sphere_attention.blur_on_the_sphere, picture_sphere_attention.blur_in_the_plane):
        torch.testing.assert_close(blur(image), image)


def test_queries_look_where_they_are():
    shown = picture_sphere_attention.where_queries_look(torch.zeros(24, 48, 3))
    for number, direction in enumerate(picture_sphere_attention.QUERIES):
        seen, color = sample_panorama(shown, direction), picture_sphere_attention.COLORS[number]
        assert seen.max() > 0.6 and seen.argmax() == color.argmax()
        assert sample_panorama(shown, -direction).max() < 0.01


def test_the_picture_that_ships():
    path = ROOT / "docs" / "sphere_attention.jpg"
    assert path.stat().st_size < 200_000
    assert Image.open(path).size == (3 * 512 + 2 * picture_sphere_attention.GAP, 2 * 256 + picture_sphere_attention.GAP)
