"""EquiConv2d against a float64 loop that goes through the tangent plane, and what must hold on a sphere."""

import math
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from evoworld.geometry import Panorama, pose_from_euler, sample_panorama
from evoworld.nn import EquiConv2d, SphericalConv2d, equi_conv

DOUBLE = torch.float64


def loop_sample(image, latitude, longitude):
    """Bilinear sample of image [H][W] (lists): column neighbours wrap, row neighbours go over the pole."""
    height, width = len(image), len(image[0])
    y, x = (0.5 - latitude / math.pi) * height - 0.5, (longitude / (2 * math.pi) + 0.5) * width - 0.5
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            weight = (1 - abs(y - row)) * (1 - abs(x - column))
            if row < 0:
                total += weight * image[-1 - row][(column + width // 2) % width]
            elif row >= height:
                total += weight * image[2 * height - 1 - row][(column + width // 2) % width]
            else:
                total += weight * image[row][column % width]
    return total


def loop_conv(image, weight, stride, dilation, groups, centre):
    """The convolution, one tap at a time, by Snyder's formulas of the gnomonic projection and its inverse.

    `centre` [2]: row and column, in pixels from the top left corner, of the middle of the kernel at output pixel 0, 0.
    """
    channels, height, width = image.shape
    outputs, _, taps_down, taps_right = weight.shape
    pixels, weights = image.tolist(), weight.tolist()
    result = torch.zeros(outputs, height // stride[0], width // stride[1], dtype=DOUBLE)
    for i in range(result.shape[1]):
        for j in range(result.shape[2]):
            lat0 = (0.5 - (i * stride[0] + centre[0]) / height) * math.pi
            lon0 = ((j * stride[1] + centre[1]) / width - 0.5) * 2 * math.pi
            for a in range(taps_down):
                for b in range(taps_right):
                    north = -(a - (taps_down - 1) / 2) * dilation[0] * math.pi / height
                    east = (b - (taps_right - 1) / 2) * dilation[1] * 2 * math.pi / width
                    x, y = math.tan(east), math.tan(north) / math.cos(east)  # on the plane that touches the equator
                    distance = math.hypot(x, y)
                    angle = math.atan(distance)
                    if distance == 0:
                        lat, lon = lat0, lon0
                    else:
                        sine = math.cos(angle) * math.sin(lat0) + y * math.sin(angle) * math.cos(lat0) / distance
                        lat = math.asin(max(-1.0, min(1.0, sine)))
                        down = distance * math.cos(lat0) * math.cos(angle) - y * math.sin(lat0) * math.sin(angle)
                        lon = lon0 + math.atan2(x * math.sin(angle), down)
                    for o in range(outputs):
                        for c in range(channels // groups):
                            channel = o // (outputs // groups) * (channels // groups) + c
                            result[o, i, j] += weights[o][c][a][b] * loop_sample(pixels[channel], lat, lon)
    return result


CASES = {  # channels in and out, H, W, kernel, stride, dilation, groups, where the kernel's middle is at output 0, 0
    "3x3": (2, 3, 6, 12, (3, 3), (1, 1), (1, 1), 1, (0.5, 0.5)),
    "5x5": (1, 2, 7, 14, (5, 5), (1, 1), (1, 1), 1, (0.5, 0.5)),
    "even": (2, 1, 6, 12, (2, 4), (1, 1), (1, 1), 1, (1.0, 1.0)),
    "one by one": (2, 2, 4, 8, (1, 1), (1, 1), (1, 1), 1, (0.5, 0.5)),
    "stride 2": (2, 2, 8, 16, (3, 3), (2, 2), (1, 1), 1, (0.5, 0.5)),
    "stride 2, even": (2, 2, 8, 16, (4, 4), (2, 2), (1, 1), 1, (1.0, 1.0)),
    "stride 1x3": (1, 2, 5, 12, (3, 3), (1, 3), (1, 1), 1, (0.5, 1.5)),
    "patches": (1, 2, 8, 16, (4, 4), (4, 4), (1, 1), 1, (2.0, 2.0)),
    "dilation": (1, 2, 9, 18, (3, 3), (1, 1), (2, 3), 1, (0.5, 0.5)),
    "groups": (4, 6, 5, 10, (3, 3), (1, 1), (1, 1), 2, (0.5, 0.5)),
    "depthwise": (3, 3, 5, 10, (3, 3), (1, 1), (1, 1), 3, (0.5, 0.5)),
    "odd width": (1, 1, 5, 11, (3, 5), (1, 1), (1, 1), 1, (0.5, 0.5)),
    "not twice as wide": (1, 1, 6, 10, (3, 3), (1, 1), (1, 1), 1, (0.5, 0.5)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_a_loop(case):
    channels, outputs, height, width, kernel_size, stride, dilation, groups, centre = case
    torch.manual_seed(0)
    conv = EquiConv2d(
        channels, outputs, kernel_size, stride, dilation=dilation, groups=groups, bias=False, dtype=DOUBLE
    )
    image = torch.randn(2, channels, height, width, dtype=DOUBLE)
    expected = [loop_conv(one, conv.weight, stride, dilation, groups, centre) for one in image]
    torch.testing.assert_close(conv(image), torch.stack(expected), atol=1e-12, rtol=0)
    # float32: a few roundings of products and of interpolation weights that are below 1
    tolerance = 8 * torch.finfo(torch.float32).eps * image.abs().max() * conv.weight.abs().flatten(1).sum(1).max()
    error = (conv.float()(image.float()) - torch.stack(expected)).abs().max()
    assert error <= tolerance


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2, 5])
def test_no_tap_is_nearer_to_a_pole_than_the_outermost_rows(kernel_size, stride, dilation):
    pairs = ((size, size) for size in (kernel_size, stride, dilation))
    rows, _ = equi_conv.tap_coordinates(12, 24, *pairs)
    assert rows.min() > -1e-9
    assert rows.max() < 11 + 1e-9


def random_conv(*arguments, dtype=DOUBLE, **options):
    torch.manual_seed(2)
    return EquiConv2d(*arguments, dtype=dtype, **options)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_turning_the_panorama_turns_the_result(stride):
    conv = random_conv(3, 4, 5, stride)
    image = torch.randn(1, 3, 8, 16, dtype=DOUBLE)
    torch.testing.assert_close(conv(image.roll(3 * stride, -1)), conv(image).roll(3, -1))


def test_turning_the_panorama_upside_down_turns_the_result():
    """Half a turn about a horizontal axis carries pixels onto pixels and exchanges the poles."""
    conv = random_conv(3, 4, 3)
    image = torch.randn(1, 3, 8, 16, dtype=DOUBLE)
    expected = conv(image).flip(-2, -1)
    with torch.no_grad():
        conv.weight.copy_(conv.weight.flip(-2, -1))
    torch.testing.assert_close(conv(image.flip(-2, -1)), expected)


def test_at_the_equator_it_is_the_planar_convolution():
    """The rows next to it are half a pixel off it, which turns the kernel by a part of a pixel that shrinks with it."""
    differences = []
    for height in (32, 64, 128):
        conv = random_conv(2, 2, 3)
        planar = SphericalConv2d(2, 2, 3, dtype=DOUBLE)
        planar.load_state_dict(conv.state_dict())
        image = torch.rand(1, 2, height, 2 * height, dtype=DOUBLE)
        middle = slice(height // 2 - 1, height // 2 + 1)
        differences.append((conv(image) - planar(image))[..., middle, :].abs().max())
    assert differences[0] < 0.004
    assert differences[1] < differences[0] / 2
    assert differences[2] < differences[1] / 2


def smooth(directions):
    x, y, z = directions.unbind(-1)
    return torch.stack((x * y - z, x * x * z + y * y, x * y * z - 0.5 * x))


@pytest.mark.parametrize("axis", [3, 5], ids=["pitch", "roll"])
def test_a_round_kernel_does_not_mind_how_the_sphere_is_turned(axis):
    """The Laplacian of a turned function is the turned Laplacian; a planar kernel is far from that."""
    height = 64
    camera, angles = Panorama(height, 2 * height), torch.zeros(6, dtype=DOUBLE)
    angles[axis] = 1.1
    rotation = pose_from_euler(angles)[:3, :3]
    directions = camera.directions(DOUBLE).reshape(height, 2 * height, 3)
    kernel = torch.tensor([[1.0, 4, 1], [4, -20, 4], [1, 4, 1]], dtype=DOUBLE) / 6 * (height / math.pi) ** 2
    errors = []
    for module in (EquiConv2d, SphericalConv2d):
        conv = module(3, 3, 3, groups=3, bias=False, dtype=DOUBLE)
        with torch.no_grad():
            conv.weight.copy_(kernel)
        of_turned = conv(smooth(directions @ rotation.mT)[None])[0]
        turned = sample_panorama(conv(smooth(directions)[None])[0].movedim(0, -1), directions @ rotation.mT)
        inside = slice(4, -4)  # bilinear sampling's own error, divided by the step squared, peaks at the poles
        errors.append((of_turned.movedim(0, -1) - turned)[inside].abs().mean() / turned[inside].abs().mean())
    assert errors[0] < 0.15 * errors[1]
    assert errors[0] < 0.06


def ops_arguments(stride, kernel_size, groups):
    torch.manual_seed(3)
    image = torch.randn(1, 4, 4, 6, dtype=DOUBLE, requires_grad=True)
    weight = torch.randn(4, 4 // groups, *kernel_size, dtype=DOUBLE, requires_grad=True)
    d_output = torch.randn(1, 4, 4 // stride[0], 6 // stride[1], dtype=DOUBLE, requires_grad=True)
    return image, weight, d_output


OPTIONS = [((1, 1), (3, 3), 1), ((2, 1), (3, 2), 2), ((2, 2), (3, 3), 4), ((2, 2), (1, 1), 1)]


@pytest.mark.parametrize("stride, kernel_size, groups", OPTIONS)
def test_gradients_of_first_and_second_order(stride, kernel_size, groups):
    image, weight, _ = ops_arguments(stride, kernel_size, groups)

    def conv(image, weight):
        return equi_conv.equi_conv2d(image, weight, stride, (1, 1), groups)

    assert gradcheck(conv, (image, weight))
    assert gradgradcheck(conv, (image, weight), fast_mode=True)


@pytest.mark.parametrize("stride, kernel_size, groups", OPTIONS[:2])
def test_opcheck(stride, kernel_size, groups):
    image, weight, d_output = ops_arguments(stride, kernel_size, groups)
    options = (list(stride), [1, 1], groups)
    torch.library.opcheck(equi_conv.equi_conv2d, (image, weight, *options))
    torch.library.opcheck(equi_conv.equi_conv2d_image, (d_output, weight, *options))
    torch.library.opcheck(equi_conv.equi_conv2d_weight, (image, d_output, list(kernel_size), *options))


@pytest.mark.parametrize("groups", [1, 2, 40])
def test_tiles_change_nothing(groups, monkeypatch):
    conv = random_conv(40, 40, 3, 2, groups=groups)
    image = torch.randn(3, 40, 8, 16, dtype=DOUBLE, requires_grad=True)
    leaves = (image, *conv.parameters())
    expected = [conv(image).detach(), *torch.autograd.grad(conv(image).square().sum(), leaves)]
    for size in (1, 20_000, 200_000):  # a row, some rows, some images
        monkeypatch.setattr(equi_conv, "_tile_bytes", lambda _, size=size: size)
        monkeypatch.setattr(equi_conv, "_d_columns_bytes", lambda _, size=size: size)
        output = conv(image)
        gradients = torch.autograd.grad(output.square().sum(), leaves)
        for got, truth in zip((output, *gradients), expected, strict=True):
            torch.testing.assert_close(got, truth)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    conv = random_conv(32, 16, 3).requires_grad_()
    image = torch.randn(2, 32, 16, 32, dtype=DOUBLE, requires_grad=True)
    upstream = torch.randn(2, 16, 16, 32, dtype=DOUBLE)
    half, half_image = random_conv(32, 16, 3, dtype=dtype), image.detach().to(dtype).requires_grad_()
    half.load_state_dict(conv.state_dict())
    output = half(half_image)
    truth = conv(image)
    assert output.dtype == dtype
    pairs = [(output, truth)]
    gradients = torch.autograd.grad(output, (half_image, half.weight, half.bias), upstream.to(dtype))
    pairs += zip(gradients, torch.autograd.grad(truth, (image, conv.weight, conv.bias), upstream), strict=True)
    for got, expected in pairs:
        assert got.dtype == dtype
        assert (got - expected).abs().max() <= 3 * torch.finfo(dtype).eps * expected.abs().max()


def test_autocast_and_compile():
    conv = random_conv(3, 4, 3, dtype=torch.float32)
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    image = torch.rand(2, 3, 8, 16, requires_grad=True)
    leaves = (image, *conv.parameters())
    torch.testing.assert_close(compiled(image), conv(image))
    gradients = torch.autograd.grad(compiled(image).square().sum(), leaves)
    for got, expected in zip(gradients, torch.autograd.grad(conv(image).square().sum(), leaves), strict=True):
        torch.testing.assert_close(got, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(image).dtype == torch.bfloat16
        torch.testing.assert_close(compiled(image), conv(image))
        conv(image).sum().backward()
    assert conv.weight.grad.dtype == torch.float32
    torch.testing.assert_close(conv.to(DOUBLE)(image.double()).float(), conv.float()(image))


def test_the_layout_in_memory_is_kept():
    conv = random_conv(3, 4, 3)
    image = torch.rand(2, 3, 8, 16, dtype=DOUBLE)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        given = image.contiguous(memory_format=memory_format).requires_grad_()
        output = conv(given)
        assert output.is_contiguous(memory_format=memory_format)
        torch.testing.assert_close(output, conv(image))
    torch.testing.assert_close(conv(image.mT.contiguous().mT), conv(image))
    assert torch.equal(conv(image[0]), conv(image[:1])[0])
    assert conv(image[:0]).shape == (0, 4, 8, 16)


def test_a_bad_pixel_spoils_only_its_neighbours():
    conv = random_conv(1, 1, 3)
    image = torch.zeros(1, 1, 16, 32, dtype=DOUBLE)
    image[..., 8, 31] = math.nan
    bad = conv(image).isnan()[0, 0].nonzero()
    assert len(bad) >= 9
    assert bad[:, 0].min() >= 6
    assert bad[:, 0].max() <= 10
    assert set(bad[:, 1].tolist()) <= {29, 30, 31, 0, 1}


def test_bits_do_not_depend_on_the_number_of_threads():
    conv = random_conv(8, 8, 3, dtype=torch.float32)
    image = torch.rand(2, 8, 32, 64, requires_grad=True)
    found, before = [], torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            output = conv(image)
            found.append((output, torch.autograd.grad(output.square().sum(), image)[0]))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_the_arguments_of_a_conv2d_fit():
    image = torch.rand(1, 4, 8, 16)
    for arguments in [(3, 2, 1), (3, 1, 1), (4, 2, 1), (7, 2, 3), (4, 4, 0), (1, 1, 0), (3, 1, 2, 2), (3, 1, "same")]:
        plain, conv = nn.Conv2d(4, 2, *arguments), EquiConv2d(4, 2, *arguments)
        conv.load_state_dict(plain.state_dict())
        assert conv(image).shape == plain(image).shape
    for padding in (0, 2, "valid", (1, 0)):
        with pytest.raises(ValueError, match=r"it must be 'same' \(its padding before the image is \(1, 1\)\), got"):
            EquiConv2d(4, 2, 3, padding=padding)


PEAK = """
import resource, sys, torch
from evoworld.nn import EquiConv2d
torch.set_num_threads(1)
conv = EquiConv2d(64, 8, 5)
conv(torch.rand(1, 64, 8, 16)).sum().backward()
image = torch.rand(2, 64, 64, 128, requires_grad=True)  # 4 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
conv(image).sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024))
"""


def test_columns_are_never_stored():
    """The columns of both images are 105 MB."""
    pytest.importorskip("resource")
    command = [sys.executable, "-c", textwrap.dedent(PEAK)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 60e6
