"""SphericalConv2d in the place of Conv2d, and what turns a model's convolutions into it."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from evoworld.data import read_capture
from evoworld.nn import EquiConv2d, SphericalConv2d, SphericalPad2d, replace_conv2d

SHAPES = [  # kernel_size, stride, padding, dilation
    (3, 1, 1, 1),
    (1, 1, 0, 1),
    (7, 2, 3, 1),
    (4, 2, 1, 1),
    ((3, 5), (1, 2), (2, 0), (2, 1)),
    (2, 2, 0, 1),
]


def pair_of(kernel_size, stride, padding, dilation, groups=1):
    torch.manual_seed(0)
    arguments = (4, 6, kernel_size, stride, padding, dilation, groups)
    plain, spherical = nn.Conv2d(*arguments), SphericalConv2d(*arguments)
    spherical.load_state_dict(plain.state_dict())
    return plain, spherical


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("groups", [1, 2])
def test_inside_the_image_it_is_conv2d(shape, groups):
    plain, spherical = pair_of(*shape, groups)
    image = torch.rand(2, 4, 16, 32)
    expected, output = plain(image), spherical(image)
    assert output.shape == expected.shape
    torch.testing.assert_close(output[..., 3:-3, 3:-3], expected[..., 3:-3, 3:-3])
    assert torch.equal(spherical(image[0]), spherical(image[:1])[0])


def test_at_the_edges_it_sees_what_lies_beyond():
    _, conv = pair_of(3, 1, 1, 1)
    image = torch.rand(1, 4, 8, 16)
    whole = torch.cat((image.flip(-2).roll(8, -1), image, image.flip(-2).roll(8, -1)), -2)  # along the meridians
    whole = torch.cat((whole, whole, whole), -1)
    expected = nn.functional.conv2d(whole, conv.weight, conv.bias, padding=1)[..., 8:16, 16:32]
    torch.testing.assert_close(conv(image), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_turning_the_panorama_turns_the_result(shape):
    kernel_size, stride, _, dilation = shape
    conv = SphericalConv2d(4, 6, kernel_size, stride, dilation=dilation)
    image, step = torch.rand(1, 4, 8, 16), conv.stride[1]
    torch.testing.assert_close(conv(image.roll(3 * step, -1)), conv(image).roll(3, -1))


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("module", [SphericalConv2d, EquiConv2d])
def test_same_keeps_the_sphere_closed(kernel_size, stride, dilation, module):
    conv = module(1, 1, kernel_size, stride, dilation=dilation, bias=False)
    nn.init.constant_(conv.weight, 1 / kernel_size**2)
    output = conv(torch.ones(1, 1, 12, 24))
    assert output.shape == (1, 1, 12 // stride, 24 // stride)
    torch.testing.assert_close(output, torch.ones_like(output))


@pytest.mark.parametrize("kernel_size, dilation", [(1, 1), (2, 1), (3, 1), (4, 1), (3, 2), (2, 3)])
def test_same_is_torchs_same_without_a_stride(kernel_size, dilation):
    plain = nn.Conv2d(2, 2, kernel_size, padding="same", dilation=dilation)
    conv = SphericalConv2d(2, 2, kernel_size, padding="same", dilation=dilation)
    conv.load_state_dict(plain.state_dict())
    image = torch.rand(1, 2, 12, 24)
    torch.testing.assert_close(conv(image)[..., 4:-4, 4:-4], plain(image)[..., 4:-4, 4:-4])


@pytest.mark.parametrize("kernel_size, stride, padding", [(3, 2, 1), (4, 2, 1), (7, 2, 3), (5, 1, 2), (4, 4, 0)])
def test_same_is_the_usual_padding_of_a_strided_kernel(kernel_size, stride, padding):
    usual = SphericalConv2d(2, 2, kernel_size, stride, padding)
    same = SphericalConv2d(2, 2, kernel_size, stride)
    same.load_state_dict(usual.state_dict())
    image = torch.rand(1, 2, 8, 16)
    torch.testing.assert_close(same(image), usual(image))


def test_it_is_a_conv2d():
    conv = SphericalConv2d(3, 5, (3, 5), padding="valid", bias=False, dtype=torch.float64)
    assert isinstance(conv, nn.Conv2d)
    assert list(conv.state_dict()) == ["weight"]
    assert conv.weight.dtype == torch.float64
    assert conv(torch.rand(3, 6, 12, dtype=torch.float64)).shape == (5, 4, 8)
    image = torch.rand(1, 3, 6, 12, dtype=torch.float64)
    for twin in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert torch.equal(twin(image), conv(image))


def test_compiled_and_under_autocast():
    conv = SphericalConv2d(3, 4, 3)
    image = torch.rand(1, 3, 8, 16)
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image), conv(image))
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(image).dtype == torch.bfloat16


@pytest.mark.parametrize("module", [SphericalConv2d, EquiConv2d])
def test_bad_input(module):
    for padding in (-1, "circular", (1, 2, 3), 0.5):
        with pytest.raises(ValueError, match="padding: expected 'same', 'valid', or one or two numbers of pixels"):
            module(3, 4, 3, padding=padding)
    conv = module(3, 4, 3, stride=2)
    with pytest.raises(ValueError, match=r"image: expected \[B, 3, H, W\], got \[1, 2, 8, 16\]"):
        conv(torch.rand(1, 2, 8, 16))
    with pytest.raises(ValueError, match=r"7 x 14 pixels must be whole multiples of the stride \(2, 2\)"):
        conv(torch.rand(1, 3, 7, 14))


def test_an_odd_width_has_no_half_turn():
    image = torch.rand(1, 3, 8, 15)
    with pytest.raises(ValueError, match="takes an even width, got 15: resize the image to 14 or 16 columns"):
        SphericalConv2d(3, 4, 3)(image)
    assert SphericalConv2d(3, 4, (1, 3))(image).shape == (1, 4, 8, 15)
    assert EquiConv2d(3, 4, 3)(image).shape == (1, 4, 8, 15)  # reads between pixels anyway


@pytest.mark.parametrize("module", [SphericalConv2d, EquiConv2d])
def test_a_blurred_photograph_shows_neither_seam_nor_poles(module):
    """Across the seam and over the poles neighbours differ as inside the image; zeros would leave dark edges there."""
    capture = read_capture(Path(__file__).parents[2] / "examples" / "living_room")
    image = capture[3].image.movedim(-1, 0)[None]
    plain, conv = (kind(3, 3, 9, padding=4, groups=3, bias=False) for kind in (nn.Conv2d, module))
    jumps = []
    for blur in (plain, conv):
        nn.init.constant_(blur.weight, 1 / 81)
        with torch.no_grad():
            blurred = blur(image)
        inside = (blurred - blurred.roll(1, -1))[..., 1:].abs().mean()
        over_poles = torch.stack((blurred[..., 0, :], blurred[..., -1, :]))
        seam = (blurred[..., 0] - blurred[..., -1]).abs().mean()
        brightness = over_poles.mean() / torch.stack((image[..., 0, :], image[..., -1, :])).mean()
        half_turn = (over_poles - over_poles.roll(256, -1)).abs().mean()
        jumps.append((float(seam / inside), float(brightness), float(half_turn)))
    assert jumps[1][0] < 1.2 < jumps[0][0]
    assert abs(jumps[1][1] - 1) < 0.05 < abs(jumps[0][1] - 1)
    assert jumps[1][2] < jumps[0][2] / 2


def autoencoder():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.SiLU(),
        nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(8, 8, 4, stride=2)),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 3, 5, padding="same", bias=False),
    )


def test_a_replaced_autoencoder_has_no_seam():
    plain = autoencoder()
    spherical = replace_conv2d(copy.deepcopy(plain)).eval()
    assert not spherical[0].training
    image = torch.rand(1, 3, 16, 32)
    torch.testing.assert_close(spherical(image.roll(6, -1)), spherical(image).roll(6, -1))
    assert (plain(image.roll(6, -1)) - plain(image).roll(6, -1)).abs().max() > 1e-2
    assert spherical.state_dict().keys() == plain.state_dict().keys()
    spherical.load_state_dict(plain.state_dict())


def test_replaced_modules_keep_their_parameters_and_their_identity():
    model = autoencoder()
    parameters = list(model.parameters())
    model.append(model[0])  # one module in two places
    one_by_one, padded = model[6], model[3][1]
    assert replace_conv2d(model) is model
    assert all(new is old for new, old in zip(model.parameters(), parameters, strict=True))
    assert type(model[0]) is SphericalConv2d
    assert model[0] is model[-1]
    assert type(model[3][0]) is SphericalPad2d
    assert model[6] is one_by_one  # no padding, nothing to replace
    assert model[3][1] is padded


def test_replacing_a_convolution_itself_and_what_is_left_alone():
    class Scaled(nn.Conv2d):
        def forward(self, image):
            return 2 * super().forward(image)

    conv = nn.Conv2d(2, 2, 3, padding=1)
    assert replace_conv2d(conv).weight is conv.weight
    for module in (Scaled(2, 2, 3, padding=1), nn.ConvTranspose2d(2, 2, 4, 2, 1), nn.ZeroPad2d((0, -1, 0, 0))):
        assert replace_conv2d(module) is module
    normed = nn.utils.spectral_norm(nn.Conv2d(2, 2, 3, padding=1))
    assert replace_conv2d(normed) is normed
