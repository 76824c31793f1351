"""Positional and rotary encodings: the seam, the poles, turning the panorama."""

import math

import pytest
import torch

from evoworld.geometry import Panorama
from evoworld.nn import SphericalPositionalEncoding, SphericalRotaryEmbedding
from evoworld.nn.encoding import angles


def at(azimuth, elevation, length=1.0):
    """Directions [..., 3] float64 at angles, written out as in DESIGN: y is down, z is azimuth 0."""
    azimuth, elevation = torch.broadcast_tensors(
        torch.as_tensor(azimuth, dtype=torch.float64), torch.as_tensor(elevation, dtype=torch.float64)
    )
    x, z = elevation.cos() * azimuth.sin(), elevation.cos() * azimuth.cos()
    return length * torch.stack((x, -elevation.sin(), z), -1)


def test_angles_are_those_the_directions_were_made_of():
    azimuth, elevation = torch.linspace(-3.1, 3.1, 41), torch.linspace(-1.5, 1.5, 41).flip(0)
    found = angles(at(azimuth, elevation, length=2.5))
    torch.testing.assert_close(found[0], azimuth.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1], elevation.double(), rtol=0, atol=1e-6)


def test_encoding_is_the_formula():
    azimuth, elevation = 0.7, -0.4
    encoding = SphericalPositionalEncoding(grid_width=17)
    assert encoding.frequencies == (1, 2, 4, 8)
    wanted = [wave(f * angle) for angle in (azimuth, elevation) for wave in (math.sin, math.cos) for f in (1, 2, 4, 8)]
    found = encoding(at(azimuth, elevation))
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [4, 5, 8, 31, 32, 33, 2048])
def test_frequencies_stop_below_what_the_grid_resolves(width):
    frequencies = SphericalPositionalEncoding(width).frequencies
    assert frequencies[0] == 1 and frequencies[-1] < width / 2 <= 2 * frequencies[-1]
    assert SphericalPositionalEncoding(width, max_octaves=1).frequencies == (1,)


def test_the_grid_tells_every_frequency_from_every_other():
    # Above the limit a sine sampled at the tokens would be one of another frequency.
    encoding = SphericalPositionalEncoding(grid_width=64)
    row = encoding(Panorama(32, 64).directions(torch.float64)).view(32, 64, -1)[7, :, : 2 * len(encoding.frequencies)]
    gram = row.T @ row / 32
    torch.testing.assert_close(gram, torch.eye(gram.shape[0], dtype=gram.dtype), rtol=0, atol=1e-9)


def test_seam_is_invisible():
    encoding = SphericalPositionalEncoding(grid_width=128)
    tiny = 1e-7
    left, right = encoding(at(math.pi - tiny, 0.3)), encoding(at(-math.pi + tiny, 0.3))
    torch.testing.assert_close(left, right, rtol=0, atol=1e-4)
    row = encoding(Panorama(64, 128).directions()).view(64, 128, -1)[32]
    steps = (row - row.roll(1, 0)).norm(dim=-1)  # the step over the seam is the first
    torch.testing.assert_close(steps, steps[1].expand(128), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_poles_and_zero_have_finite_values_and_gradients(dtype):
    directions = torch.tensor([[0, -1, 0], [0, 1, 0], [0, 0, 0], [0, 0, -1], [0, 0, 1], [-1, 0, 0.0]], dtype=dtype)
    directions.requires_grad_()
    encoding = SphericalPositionalEncoding(grid_width=16)
    found = encoding(directions)
    assert found.dtype == dtype and found.shape == (6, encoding.num_channels)
    found.float().sum().backward()
    assert found.isfinite().all() and directions.grad.isfinite().all()
    up, down, zero, *_ = angles(directions.detach().double())[1].tolist()
    assert (up, down, zero) == pytest.approx((math.pi / 2, -math.pi / 2, 0.0))
    assert angles(directions.detach())[0][:3].tolist() == [0, 0, 0]


def test_gradient_of_the_encoding():
    directions = at([0.3, -2.0, 3.0], [0.2, -1.0, 1.2], length=0.7).requires_grad_()
    assert torch.autograd.gradcheck(SphericalPositionalEncoding(grid_width=16), directions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((3,), "grid_width.*int >= 4"), ((8.0,), "grid_width.*int >= 4"), ((8, 0), "max_octaves.*int >= 1")],
)
def test_encoding_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        SphericalPositionalEncoding(*arguments)
    with pytest.raises(ValueError, match="directions: expected"):
        SphericalPositionalEncoding(8)(torch.zeros(5, 2))


def logits(rotary, query, key, directions):
    """Logits [N, L, L] of tokens [N, L, D] rotated by their directions."""
    return rotary(query, directions) @ rotary(key, directions).mT


def turned(x, grid, columns):
    """Tokens [..., H W, D] of a panorama that was turned by whole columns."""
    return x.unflatten(-2, grid).roll(columns, -2).flatten(-3, -2)


@pytest.mark.parametrize("width", [32, 256])
def test_turning_the_panorama_changes_no_logit(width):
    generator = torch.Generator().manual_seed(0)
    grid = (4, width)  # fewer rows than a panorama has: what matters here is the columns
    row = at((torch.arange(width, dtype=torch.float64) + 0.5) / width * 2 * math.pi - math.pi, 0.0)
    latitude = torch.tensor([1.5, 0.4, -0.3, -1.1], dtype=torch.float64)
    level = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    directions = row * level * latitude.cos()[:, None, None]
    directions[..., 1] = -latitude.sin()[:, None]
    directions = directions.flatten(0, 1)
    query, key = torch.randn(2, 2, 4 * width, 64, generator=generator) / 8

    rotary = SphericalRotaryEmbedding(head_dim=64, grid_width=width)
    columns = 5
    before = logits(rotary, query, key, directions)
    after = logits(rotary, turned(query, grid, columns), turned(key, grid, columns), directions)
    moved = turned(turned(before, grid, columns).mT, grid, columns).mT
    assert (after - moved).abs().max() < 2e-6

    # An ordinary rotary embedding, whose angles do not close around the panorama, has no such symmetry.
    rotary.frequencies = tuple(f * 0.37 for f in rotary.frequencies)
    before = logits(rotary, query, key, directions)
    after = logits(rotary, turned(query, grid, columns), turned(key, grid, columns), directions)
    assert (after - turned(turned(before, grid, columns).mT, grid, columns).mT).abs().max() > 0.1


def test_rotary_is_a_rotation_of_pairs_by_both_angles():
    azimuth, elevation = 0.6, -0.9
    rotary = SphericalRotaryEmbedding(head_dim=8, grid_width=16)
    assert rotary.frequencies == (1, 7)
    token = torch.arange(1.0, 9.0, dtype=torch.float64)
    found = rotary(token[None], at(azimuth, elevation)[None])[0]
    for pair, phase in enumerate((azimuth, 7 * azimuth, elevation, 7 * elevation)):
        number = complex(token[pair], token[pair + 4]) * complex(math.cos(phase), math.sin(phase))
        assert complex(found[pair], found[pair + 4]) == pytest.approx(number, abs=1e-12)


@pytest.mark.parametrize(("count", "width"), [(4, 16), (32, 16), (16, 2048), (1, 4), (32, 64)])
def test_rotary_frequencies_are_distinct_and_resolved(count, width):
    rotary = SphericalRotaryEmbedding(4 * count, width)
    used = [f for f in rotary.frequencies if f]
    assert len(rotary.frequencies) == count and len(used) == min(count, (width - 1) // 2)
    assert used == sorted(set(used)) and all(isinstance(f, int) and 1 <= f < width / 2 for f in used)
    assert count == 1 or used[-1] == (width - 1) // 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_keeps_lengths_dtype_and_the_zero_angle(dtype):
    rotary = SphericalRotaryEmbedding(head_dim=32, grid_width=64)
    tokens = torch.randn(2, 3, 128, 32).to(dtype)
    rotated = rotary(tokens, Panorama(8, 16).directions())
    assert rotated.dtype == dtype and rotated.shape == tokens.shape
    torch.testing.assert_close(rotated.float().norm(dim=-1), tokens.float().norm(dim=-1), rtol=1e-2, atol=0)
    ahead = torch.tensor([[0.0, 0.0, 1.0]])
    assert torch.equal(rotary(tokens[:, :, :1], ahead), tokens[:, :, :1])
    poles = torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])
    assert rotary(tokens[:, :, :2], poles).isfinite().all()


def test_rotary_gradient_reaches_tokens():
    rotary = SphericalRotaryEmbedding(head_dim=4, grid_width=8)
    tokens = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    directions = at([0.1, 2.0, -3.0], [1.0, 0.0, -0.5])
    assert torch.autograd.gradcheck(lambda tokens: rotary(tokens, directions), tokens)


def test_rotary_says_what_is_wrong():
    with pytest.raises(ValueError, match="head_dim: expected a multiple of 4"):
        SphericalRotaryEmbedding(18, 16)
    with pytest.raises(ValueError, match="grid_width"):
        SphericalRotaryEmbedding(16, 2)
    rotary = SphericalRotaryEmbedding(16, 16)
    with pytest.raises(ValueError, match="tokens: expected rows of 16"):
        rotary(torch.zeros(1, 5, 8), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="directions: expected"):
        rotary(torch.zeros(1, 5, 16), torch.zeros(4, 3))
