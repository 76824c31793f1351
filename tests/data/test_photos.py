from pathlib import Path

import pytest
import torch

from evoworld.data import CachedWalks, CaptureError, PhotoPanoramas
from evoworld.data.files import write_image


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(("b.png", "a.jpg", "c.PNG")):
        write_image(tmp_path / name, torch.full((16, 32, 3), 0.25 * i))
    (tmp_path / "a.txt").write_text("a grey\n wall \n", encoding="utf-8")
    (tmp_path / "notes.md").write_text("not a photograph", encoding="utf-8")
    return tmp_path


def test_photographs_are_walks_of_one_frame_without_depth(folder):
    photos = PhotoPanoramas(folder, height=8)
    assert [photo.name for photo in photos] == ["a", "b", "c"]
    photo = photos[0]
    assert photo.image.shape == (1, 8, 16, 3) and photo.depth is None
    assert photo.image.mean().item() == pytest.approx(0.25, abs=0.01)
    assert [p.captions for p in photos] == [("a grey wall",), ("",), ("",)]


def test_can_be_cached(folder, tmp_path):
    cached = CachedWalks(PhotoPanoramas(folder, height=8), tmp_path / "cache")
    assert cached[1].depth is None and cached[1].image.equal(cached[1].image)


def test_another_caption_is_another_identity(folder):
    first = PhotoPanoramas(folder, height=8).identity
    (folder / "b.txt").write_text("a red wall", encoding="utf-8")
    assert PhotoPanoramas(folder, height=8).identity != first


def test_refuses(folder):
    with pytest.raises(CaptureError, match="no such folder"):
        PhotoPanoramas(Path("/nowhere"))
    with pytest.raises(ValueError, match="height"):
        PhotoPanoramas(folder, height=0)
    write_image(folder / "d.png", torch.zeros(16, 16, 3))
    with pytest.raises(CaptureError, match=r"d\.png: expected a panorama twice as wide as high, got 16x16"):
        PhotoPanoramas(folder)
    (folder / "d.png").write_bytes(b"broken")
    with pytest.raises(CaptureError, match=r"d\.png"):
        PhotoPanoramas(folder)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(CaptureError, match="expected photographs"):
        PhotoPanoramas(folder)
