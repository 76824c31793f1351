"""The specification of volume_render against loops in plain Python, by finite differences, and by its properties."""

import importlib
import itertools
import math

import pytest
import torch

from evoworld import reference
from evoworld.geometry import SparseGrid
from evoworld.testing import RENDER_CASES


def in_float64(name, rays=None):
    arguments = RENDER_CASES[name].build()
    for key, value in arguments.items():
        if isinstance(value, torch.Tensor):
            cut = slice(rays) if key in ("origins", "directions", "jitter") else slice(None)
            arguments[key] = value[cut].double()
    return arguments


def by_loops(features, density, origins, directions, grid, near, far, step, min_transmittance, jitter, image_width):
    """One sample and one corner at a time, through a dictionary of bricks."""
    bricks = {tuple(brick): index for index, brick in enumerate(grid.brick_coordinates.tolist())}
    outputs = []
    for ray in range(origins.shape[0]):
        transmittance, depth, opacity = 1.0, 0.0, 0.0
        gathered = torch.zeros(features.shape[1], dtype=torch.float64)
        for k in itertools.count():
            t = near + (k + (0.5 if jitter is None else jitter[ray].item())) * step
            if not t < far or transmittance < min_transmittance:
                break
            sigma, feature = 0.0, torch.zeros_like(gathered)
            point = [o + t * d for o, d in zip(origins[ray].tolist(), directions[ray].tolist(), strict=True)]
            g = [(p - o) / grid.voxel_size for p, o in zip(point, grid.origin, strict=True)]
            for corner in itertools.product((0, 1), repeat=3):
                lattice = [math.floor(x) + c for x, c in zip(g, corner, strict=True)]
                brick = bricks.get(tuple(x // 4 for x in lattice))
                if brick is not None:
                    x, y, z = (value % 4 for value in lattice)
                    row = brick * 64 + x * 16 + y * 4 + z
                    share = math.prod(1 - abs(a - b) for a, b in zip(g, lattice, strict=True))
                    sigma += share * density[row].item()
                    feature += share * features[row]
            alpha = 1 - math.exp(-sigma * step)
            gathered += transmittance * alpha * feature
            depth += transmittance * alpha * t
            opacity += transmittance * alpha
            transmittance *= 1 - alpha
        outputs.append((gathered, depth, opacity))
    gathered, depth, opacity = zip(*outputs, strict=True)
    return torch.stack(gathered), torch.tensor(depth).double(), torch.tensor(opacity).double()


@pytest.mark.parametrize("name", ["channels_3", "jitter", "exact", "negative_density", "patch", "opaque", "holes"])
def test_equals_loops(name):
    arguments = in_float64(name, rays=9)
    for found, expected in zip(reference.volume_render(**arguments), by_loops(**arguments), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["channels_3", "exact", "negative_density", "transparent"])
def test_gradients(name):
    arguments = in_float64(name, rays=5)
    names = ("features", "density", "origins", "directions")
    inputs = [arguments[key].requires_grad_() for key in names]

    def op(*values):
        return reference.volume_render(**{**arguments, **dict(zip(names, values, strict=True))})

    assert torch.autograd.gradcheck(op, inputs, fast_mode=True, eps=1e-7)


def solid_room(density):
    """Everything within 2 m of the origin allocated, and of one density."""
    axis = torch.arange(-2.0, 2.01, 0.25)
    grid = SparseGrid.from_points(torch.cartesian_prod(axis, axis, axis), voxel_size=0.25)
    return grid, torch.full((grid.num_voxels,), density, dtype=torch.float64)


def test_constant_fields_have_the_closed_form():
    grid, density = solid_room(0.7)
    directions = torch.nn.functional.normalize(torch.randn(20, 3, dtype=torch.float64), dim=-1)
    origins = torch.zeros_like(directions)
    features = torch.full((grid.num_voxels, 2), 3.0, dtype=torch.float64)
    rendered, depth, opacity = reference.volume_render(features, density, origins, directions, grid, 0.0, 1.5, 0.01)
    expected = 1 - math.exp(-0.7 * 1.5)
    torch.testing.assert_close(opacity, torch.full_like(opacity, expected))
    torch.testing.assert_close(rendered, torch.full_like(rendered, 3 * expected))
    mean = 1 / 0.7 - (1.5 + 1 / 0.7) * math.exp(-0.7 * 1.5)  # of t 0.7 exp(-0.7 t) from 0 to 1.5
    torch.testing.assert_close(depth, torch.full_like(depth, mean), rtol=0, atol=1e-5)


def test_ends_before_the_first_sample_below_min_transmittance():
    grid, density = solid_room(1.0)
    features = torch.ones(grid.num_voxels, 1, dtype=torch.float64)
    ray = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    # T_k = exp(-0.1 k): T_3 = 0.741 is the first below 0.75, so that samples 0, 1 and 2 are used.
    _, depth, opacity = reference.volume_render(features, density, *ray, grid, 0.0, 1.0, 0.1, min_transmittance=0.75)
    weights = [math.exp(-0.1 * k) * (1 - math.exp(-0.1)) for k in range(3)]
    assert opacity.item() == pytest.approx(sum(weights))
    assert depth.item() == pytest.approx(sum(w * (k + 0.5) * 0.1 for k, w in enumerate(weights)))


def test_chunks_change_nothing(monkeypatch):
    module = importlib.import_module("evoworld.reference.volume_render")
    arguments = in_float64("jitter")
    whole = reference.volume_render(**arguments)
    monkeypatch.setattr(module, "_CHUNK_RAYS", 11)
    monkeypatch.setattr(module, "_CHUNK_VALUES", 11 * 8 * 4 * 7)  # 7 samples of 11 rays
    for found, expected in zip(reference.volume_render(**arguments), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
