"""On a real panorama: with query zero, areas as weights and a zonal bias attention is a blur on the sphere."""

import math
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

import evoworld
from evoworld.geometry import Panorama, pose_from_euler, rotate, rotate_panorama, sample_panorama
from evoworld.ops import sphere_attention
from evoworld.testing import backends, on_device

BACKENDS = backends("sphere_attention")
on_every_backend = pytest.mark.parametrize(("backend", "device"), BACKENDS)
PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "examples" / "living_room" / "rgb"
KAPPA = 30.0  # e^-1/2 at 10 degrees
VIEWS = Panorama(12, 24)
HALF_A_LEVEL = 0.5 / 255  # of an 8-bit image


def photograph(name="0009"):
    """[256, 512, 3] from 0 to 1."""
    return torch.from_numpy(numpy.array(Image.open(PHOTOGRAPHS / f"{name}.jpg"))).float() / 255


def shrunk(image, factor):
    """Means of squares of pixels: [H, W, 3]."""
    height, width, _ = image.shape
    return image.view(height // factor, factor, width // factor, factor, 3).mean((1, 3))


def blurred(backend, device, image, directions, kappa=KAPPA, radius=None, area_weighted=True):
    """What the blur of a panorama [H, 2H, 3] looks like in directions [L, 3]: [L, 3]."""
    camera = Panorama(*image.shape[:2])
    keys = camera.height * camera.width
    arguments = {
        "query": torch.zeros(1, 1, len(directions), 16),
        "key": torch.zeros(1, 1, keys, 16),
        "value": torch.nn.functional.pad(image.reshape(1, 1, keys, 3), (0, 13)),
        "query_directions": directions,
        "key_directions": camera.directions().view(keys, 3),
        "zonal": torch.tensor([[0.0, kappa]]),
        "key_log_weight": camera.solid_angle().flatten().log() if area_weighted else None,
        "radius": radius,
    }
    with evoworld.backend(backend):
        return sphere_attention(**on_device(arguments, device))[0, 0, :, :3].cpu()


def spiral(count):
    """Directions [count, 3] that each have the same share of the sphere (Fibonacci's lattice)."""
    index = torch.arange(count, dtype=torch.float64) + 0.5
    up, longitude = 1 - 2 * index / count, index * (math.pi * (1 + 5**0.5))
    flat = (1 - up.square()).sqrt()
    return torch.stack((flat * longitude.cos(), up, flat * longitude.sin()), -1)


@on_every_backend
@pytest.mark.parametrize("radius", [None, 0.5])
def test_it_is_the_integral(backend, device, radius):
    """Of density times photograph over points that are spread evenly, in float64: other points, no weights."""
    image = photograph()
    x = VIEWS.directions().view(-1, 3)
    found = blurred(backend, device, shrunk(image, 4), x, radius=radius)
    points = spiral(30_000)
    density = (KAPPA * (x.double() @ points.T - 1)).exp()
    if radius is not None:
        density[x.double() @ points.T < math.cos(radius)] = 0
    expected = density @ sample_panorama(image.double(), points) / density.sum(1, keepdim=True)
    assert (found - expected).abs().max() < HALF_A_LEVEL


TURN = pose_from_euler(torch.tensor([0.0, 0.0, 0.0, 0.9, -2.0, 0.5]))[:3, :3]  # the poles move to the horizon, nearly


@on_every_backend
@pytest.mark.parametrize("radius", [None, 0.5])
@pytest.mark.parametrize("name", ["0000", "0021"])
def test_it_commutes_with_rotations(backend, device, name, radius):
    """Blurred and turned is turned and blurred, up to the resampling of the photograph; without areas it is not."""
    image = photograph(name)
    x = VIEWS.directions().view(-1, 3)
    turned = rotate_panorama(image, TURN)

    def difference(**options):
        first_blurred = blurred(backend, device, shrunk(image, 4), rotate(TURN, x), radius=radius, **options)
        first_turned = blurred(backend, device, shrunk(turned, 4), x, radius=radius, **options)
        return (first_blurred - first_turned).abs().max()

    assert difference() < HALF_A_LEVEL
    assert difference(area_weighted=False) > 20 * HALF_A_LEVEL


@on_every_backend
def test_it_leaves_the_mean_and_takes_away_the_details(backend, device):
    image = shrunk(photograph(), 8)
    camera = Panorama(*image.shape[:2])
    weights = camera.solid_angle().view(-1, 1) / (4 * math.pi)
    x = camera.directions().view(-1, 3)
    variances = []
    for kappa in (1e-3, 3.0, 30.0, 300.0):
        soft = blurred(backend, device, image, x, kappa=kappa)
        mean = (weights * soft).sum(0)
        torch.testing.assert_close(mean, (weights * image.view(-1, 3)).sum(0), rtol=0, atol=2e-3)
        variances.append((weights * (soft - mean).square()).sum().item())
    assert variances[0] < 1e-6 and variances == sorted(variances)
    assert variances[-1] < (weights * (image.view(-1, 3) - mean).square()).sum()
