"""Padding over the seam and the poles, against where each padded pixel lies on the sphere."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from evoworld.geometry import Panorama
from evoworld.nn import SphericalPad2d, spherical_pad


def direction(row, column, height, width):
    """Of a pixel of the image's endless continuation: beyond a pole the latitude goes on past 90 degrees."""
    lon = ((column + 0.5) / width - 0.5) * 2 * math.pi
    lat = (0.5 - (row + 0.5) / height) * math.pi
    return torch.tensor([math.cos(lat) * math.sin(lon), -math.sin(lat), math.cos(lat) * math.cos(lon)])


@pytest.mark.parametrize("padding", [1, 3, 5, (2, 0, 0, 1), (0, 7, 2, 0), (10, 10, 5, 5), (0, 0, 1, 0), 0])
def test_every_pixel_is_the_one_that_looks_the_same_way(padding):
    height, width = 5, 10
    image = Panorama(height, width).directions().reshape(height, width, 3).movedim(-1, 0)
    padded = spherical_pad(image, padding)
    left, right, top, bottom = (padding,) * 4 if isinstance(padding, int) else padding
    assert padded.shape == (3, top + height + bottom, left + width + right)
    for row in range(-top, height + bottom):
        for column in range(-left, width + right):
            expected = direction(row, column, height, width)
            torch.testing.assert_close(padded[:, row + top, column + left], expected, atol=1e-6, rtol=0)


def test_any_even_width_any_leading_dimensions_any_dtype():
    image = torch.arange(2 * 3 * 4 * 6, dtype=torch.int16).reshape(2, 3, 4, 6)
    padded = spherical_pad(image, 2)
    assert padded.dtype == torch.int16
    torch.testing.assert_close(padded[0, 1], spherical_pad(image[0, 1], 2), rtol=0, atol=0)
    assert padded[1, 2, 0].tolist() == image[1, 2, 1, [1, 2, 3, 4, 5, 0, 1, 2, 3, 4]].tolist()


def test_an_odd_width_pads_in_longitude_alone():
    image = torch.arange(6).reshape(2, 3)
    assert spherical_pad(image, (1, 1, 0, 0)).tolist() == [[2, 0, 1, 2, 0], [5, 3, 4, 5, 3]]
    with pytest.raises(ValueError, match=r"even width, got 3: resize the image to 2 or 4 columns, or pad its left and"):
        spherical_pad(image, (0, 0, 0, 1))


def test_turning_the_panorama_turns_the_result():
    image = torch.rand(2, 6, 12)
    padded = spherical_pad(image, (4, 5, 3, 2))
    turned = spherical_pad(image.roll(5, -1), (4, 5, 3, 2))
    assert torch.equal(turned[..., 5:], padded[..., :-5])


def test_the_module_is_the_function():
    image = torch.rand(1, 2, 4, 8)
    module = SphericalPad2d((1, 2, 3, 4))
    assert torch.equal(module(image), spherical_pad(image, (1, 2, 3, 4)))
    assert repr(module) == "SphericalPad2d((1, 2, 3, 4))"
    assert torch.equal(torch.compile(module, fullgraph=True, backend="aot_eager")(image), module(image))


def test_channels_last_stays_channels_last():
    image = torch.rand(2, 3, 4, 8).contiguous(memory_format=torch.channels_last)
    padded = spherical_pad(image, 1)
    assert padded.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(padded, spherical_pad(image.contiguous(), 1))


def test_gradients():
    image = torch.rand(2, 3, 6, dtype=torch.float64, requires_grad=True)

    def squared(image):
        return spherical_pad(image, (4, 1, 2, 3)).square()

    assert gradcheck(squared, image)
    assert gradgradcheck(squared, image)


@pytest.mark.parametrize("padding", [-1, (1, 2), (1, 1, -1, 1), 1.5, "same", (1, 1, 1, 1.0)])
def test_bad_padding(padding):
    with pytest.raises(ValueError, match="padding: expected a number of pixels or"):
        SphericalPad2d(padding)


def test_padding_beyond_the_other_side():
    with pytest.raises(ValueError, match=r"up to the width 8, top and bottom up to the height 4, got \(0, 0, 5, 0\)"):
        spherical_pad(torch.rand(4, 8), (0, 0, 5, 0))
    with pytest.raises(ValueError, match=r"image: expected \[..., H, W\], got \[8\]"):
        spherical_pad(torch.rand(8), 1)
