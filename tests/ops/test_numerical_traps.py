"""Each place where a plain float32 kernel goes wrong, with a check that the plain way would fail the test."""

import math

import pytest
import torch

import evoworld
from evoworld.geometry import Panorama, SparseGrid
from evoworld.ops import volume_render, voxel_scatter, voxel_scatter_
from evoworld.ops.library import triton_interprets
from evoworld.testing import RENDER_CASES, SCATTER_CASES, backends, evaluate, under_simt

BACKENDS = backends("volume_render")
needs_native = pytest.mark.skipif(("cpu", "cpu") not in BACKENDS, reason="no native CPU library")
on_every_backend = pytest.mark.parametrize(("backend", "device"), BACKENDS)


def random_directions(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, 3, generator=draw), dim=-1)


def solid(low, high, voxel_size, origin=(0.0, 0.0, 0.0)):
    """A grid with every brick of a box of lattice points allocated."""
    bricks = torch.cartesian_prod(*[torch.arange(a // 4, b // 4 + 1) for a, b in zip(low, high, strict=True)])
    return SparseGrid.from_bricks(bricks, voxel_size, origin)


def corridor(length, voxel_size=0.25):
    """Everything around the x axis up to a length."""
    return solid((-4, -4, -4), (int(length / voxel_size) + 4, 4, 4), voxel_size)


@on_every_backend
def test_coordinates_300_m_away(backend, device):
    """((o - origin) + t d) / voxel_size, not (o + t d - origin) / voxel_size: that is far worse at 300 m."""
    count, voxel_size, origin = 64, 0.05, (300.0, -300.0, 300.0)
    directions = random_directions(count)
    origins = torch.tensor(origin) + 0.25
    origins = origins.expand(count, 3).contiguous()
    depth = torch.linspace(0.5, 1.1, count)
    grid = solid((-24,) * 3, (34,) * 3, voxel_size, origin).to(device)

    # With one channel a ray, a column holds the trilinear weights of its point, whose mean lattice point is g itself.
    arguments = (torch.eye(count), depth, origins, directions)
    with evoworld.backend(backend):
        weights, _ = voxel_scatter(*(x.to(device) for x in arguments), grid)
    positions = grid.to("cpu").voxel_positions().double() - torch.tensor(origin).double()
    lattice = (positions / voxel_size).round()
    g = weights.cpu().double().T @ lattice

    exact = (origins.double() - torch.tensor(origin).double() + depth.double()[:, None] * directions) / voxel_size
    naive = ((origins + depth[:, None] * directions) - torch.tensor(origin)) / voxel_size
    assert (naive - exact).abs().max() > 2e-4
    assert (g - exact).abs().max() < 1e-5


@pytest.mark.parametrize("backend", [name for name, _ in BACKENDS if name != "reference"])
def test_backends_take_the_same_cells(backend):
    """Close to faces rounding decides the cell. The spelled-out multiply-adds of core/ round as the reference does."""
    draw = torch.Generator().manual_seed(3)
    executed = under_simt() or (backend == "triton" and triton_interprets())
    count, voxel_size = 2000 if executed else 50000, 0.1
    directions = random_directions(count)
    origins = torch.rand(count, 3, generator=draw)
    faces = torch.randint(8, 30, (count,), generator=draw) * voxel_size
    axis = directions.abs().argmax(-1, keepdim=True)
    toward = directions.gather(1, axis)[:, 0]
    depth = (toward.sign() * faces - origins.gather(1, axis)[:, 0]) / toward  # ends on a face, but for rounding
    grid = solid((-32,) * 3, (32,) * 3, voxel_size)
    arguments = {"features": torch.ones(count, 1), "depth": depth, "origins": origins, "directions": directions}
    arguments["grid"] = grid

    device = dict(BACKENDS)[backend]
    with evoworld.backend(backend):
        found = evaluate(voxel_scatter, arguments, device=device)["d_depth"]
    with evoworld.backend("reference"):
        expected = evaluate(voxel_scatter, arguments)["d_depth"]
        exact = evaluate(voxel_scatter, arguments, torch.float64)["d_depth"]
    jumps = (expected - exact).abs() > 1e-2  # gradients jump from cell to cell
    assert jumps.sum() > count // 50
    assert (found - expected).abs().max() < 1e-2


@on_every_backend
def test_sample_distances_do_not_drift(backend, device):
    """t_k = near + (k + jitter) step in closed form; adding up 1,600 steps is off by a third of a millimetre."""
    step, steps = 0.0251, 1600
    grid = corridor(step * steps)
    density = torch.zeros(grid.num_voxels)
    density[grid.voxel_positions()[:, 0] > 38.0] = 0.02  # only what lies at the far end counts
    rays = torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.0]])
    march = {"near": 0.1, "far": 0.1 + steps * step, "step": step, "min_transmittance": 0.0}
    tensors = [x.to(device) for x in (torch.zeros(grid.num_voxels, 0), density, *rays)]
    with evoworld.backend(backend):
        _, depth, opacity = volume_render(*tensors, grid.to(device), **march)
    with evoworld.backend("reference"):
        wide = [x.double().cpu() for x in tensors]
        _, exact_depth, exact_opacity = volume_render(*wide, grid, **march)
    total = torch.zeros(())
    for _ in range(steps):
        total += step
    assert abs(total.item() - step * steps) > 1e-4
    assert abs(depth.item() / opacity.item() - exact_depth.item() / exact_opacity.item()) < 2e-5


@on_every_backend
@pytest.mark.parametrize("name", ["patch", "several_pages", "far_from_origin", "jitter", "from_outside", "poles"])
def test_skipping_changes_no_bit(backend, device, name):
    """Among empty bricks that are allocated, nothing can be skipped; the samples that count must be the very same.

    GPU kernels add them up in groups that depend on what was skipped: the last bits of their sums may differ.
    """
    arguments = RENDER_CASES[name].build()
    grid = arguments["grid"]
    bricks = grid.brick_coordinates
    box = [torch.arange(a - 1, b + 2) for a, b in zip(bricks.amin(0).tolist(), bricks.amax(0).tolist(), strict=True)]
    around = torch.cartesian_prod(*box)
    free = grid.lookup(around * 4) < 0
    full = SparseGrid.from_bricks(torch.cat([bricks.long(), around[free]]), grid.voxel_size, grid.origin)
    extra = full.num_voxels - grid.num_voxels
    assert extra > 0
    filled = dict(arguments, grid=full)
    filled["features"] = torch.cat([arguments["features"], torch.zeros(extra, arguments["features"].shape[1])])
    filled["density"] = torch.cat([arguments["density"], torch.zeros(extra)])

    torch.set_num_threads(1)
    with evoworld.backend(backend):
        expected, found = (evaluate(volume_render, a, device=device) for a in (filled, arguments))
    for key in ("d_features", "d_density"):
        expected[key] = expected[key][: grid.num_voxels]
    for key in ("0", "1", "2", "d_features", "d_density"):
        if backend == "reference" or (backend == "cpu" and not under_simt()):
            assert torch.equal(found[key], expected[key]), key
        else:
            largest = expected[key].abs().max().item()
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-6 * largest)


@on_every_backend
def test_alpha_of_thin_media(backend, device):
    """-expm1(-x); 1 - exp(-x) is off by 2e-4 at x = 1e-4."""
    x = torch.logspace(-9, 1.5, 64)
    step, grid = 0.5, solid((0, 0, 0), (3, 3, 3), 1.0)
    opacities = []
    for value in x / step:
        tensors = [torch.zeros(64, 1), value.expand(64), torch.full((1, 3), 1.1), torch.tensor([[1.0, 0.0, 0.0]])]
        with evoworld.backend(backend):
            rendered = volume_render(*(t.to(device) for t in tensors), grid.to(device), near=0.0, far=step, step=step)
        opacities.append(rendered[2].item())
    exact = -torch.expm1(-x.double())
    plain = 1 - torch.exp(-x)
    assert ((plain - exact) / exact)[x < 2e-4].abs().max() > 2e-4
    torch.testing.assert_close(torch.tensor(opacities).double(), exact, rtol=5e-7, atol=0)


@on_every_backend
def test_zero_density_has_a_gradient(backend, device):
    """d opacity / d density of empty but allocated space is the length of ray in it: the backward must look there."""
    grid = corridor(8.0)
    density = torch.zeros(grid.num_voxels, device=device, requires_grad=True)
    rays = torch.zeros(1, 3, device=device), torch.tensor([[1.0, 0.0, 0.0]], device=device)
    features = torch.zeros(grid.num_voxels, 1, device=device)
    with evoworld.backend(backend):
        _, _, opacity = volume_render(features, density, *rays, grid.to(device), near=0.0, far=6.0, step=0.1)
        opacity.sum().backward()
    assert opacity.item() == 0
    assert density.grad.sum().item() == pytest.approx(6.0, rel=1e-5)


@on_every_backend
@pytest.mark.parametrize("value", [1e-12, -0.3, -1e-12])
def test_features_are_skipped_at_density_zero_only(backend, device, value):
    grid = corridor(8.0)
    density = torch.full((grid.num_voxels,), value, device=device)
    rays = torch.zeros(1, 3, device=device), torch.tensor([[1.0, 0.0, 0.0]], device=device)
    features = torch.ones(grid.num_voxels, 2, device=device, requires_grad=True)
    with evoworld.backend(backend):
        rendered, _, opacity = volume_render(features, density, *rays, grid.to(device), near=0.0, far=6.0, step=0.1)
        rendered.sum().backward()
    expected = -math.expm1(-6.0 * value)
    assert opacity.item() == pytest.approx(expected, rel=1e-5)
    assert rendered[0].tolist() == pytest.approx([expected] * 2, rel=1e-5)
    assert features.grad.sum().item() == pytest.approx(2 * expected, rel=1e-5)


@on_every_backend
def test_suffix_sums_over_many_samples(backend, device):
    """Gradients of long, thin rays equal those of float64 to 1e-4 of each element, not only of the largest."""
    step, steps = 0.0249, 1600
    grid = corridor(step * steps)
    draw = torch.Generator().manual_seed(0)
    tensors = {
        "features": torch.randn(grid.num_voxels, 2, generator=draw) + 1,
        "density": 0.1 * torch.rand(grid.num_voxels, generator=draw),
        "origins": torch.tensor([[0.0, 0.07, 0.03]]),
        "directions": torch.tensor([[1.0, 0.0, 0.0]]),
    }

    def op(**arguments):
        return volume_render(**arguments, near=0.1, far=39.9, step=step, min_transmittance=0.0)

    with evoworld.backend("reference"):
        exact = evaluate(op, {**tensors, "grid": grid}, torch.float64)
    with evoworld.backend(backend):
        found = evaluate(op, {**tensors, "grid": grid}, device=device)
    reached = exact["d_density"].abs() > 1e-3 * exact["d_density"].abs().max()
    assert reached.sum() > 300
    relative = (found["d_density"] / exact["d_density"] - 1).abs()[reached]
    assert relative.max() < 1e-3 and relative.median() < 1e-5
    torch.testing.assert_close(found["d_origins"].double(), exact["d_origins"], rtol=1e-4, atol=1e-5)


@on_every_backend
def test_nothing_lies_behind_the_sample_that_ends_a_ray(backend, device):
    """Its suffix is zero, not what rounding leaves of total - prefix: steep walls would multiply that by 1e4."""
    arguments = RENDER_CASES["opaque"].build()
    arguments["density"] = torch.full_like(arguments["density"], 1e4)
    with evoworld.backend("reference"):
        exact = evaluate(volume_render, arguments, torch.float64)
    with evoworld.backend(backend):
        found = evaluate(volume_render, arguments, device=device)
    for name in ("d_origins", "d_directions"):
        assert (found[name] - exact[name]).abs().max() < 5e-6 * exact[name].abs().max(), name


@on_every_backend
def test_cells_below_an_allocated_brick(backend, device):
    """A cell at lattice -1 reads brick 0, across the borders of bricks and of pages."""
    grid = solid((0, 0, 0), (3, 3, 3), 1.0)
    assert grid.brick_coordinates.tolist() == [[0, 0, 0]]
    along = 1e-3 * math.sqrt(3)  # from here, the way to (-0.5, -0.5, -0.5)
    start, diagonal = torch.full((1, 3), -0.501), torch.full((1, 3), 1 / math.sqrt(3))
    one, values, depth, jitter = torch.ones(1, 1), torch.ones(64, 1), torch.full((1,), along), torch.full((1,), along)
    one, values, depth, jitter, start, diagonal = (x.to(device) for x in (one, values, depth, jitter, start, diagonal))
    grid, march = grid.to(device), {"near": 0.0, "far": 0.9, "step": 1.0}  # one sample, at jitter * step
    with evoworld.backend(backend):
        _, weight = voxel_scatter(one, depth, start, diagonal, grid)
        _, _, opacity = volume_render(values, values[:, 0], start, diagonal, grid, **march, jitter=jitter)
    assert weight.cpu().nonzero().tolist() == [[0]]
    assert weight[0].item() == pytest.approx(0.125, rel=1e-5)
    assert opacity.item() == pytest.approx(-math.expm1(-0.125), rel=1e-5)


def test_poles_gather_their_solid_angle():
    """A panorama's pixels crowd at its poles: weighed by solid angle a voxel gathers the same there as anywhere."""
    camera = Panorama(64, 128)
    directions = camera.directions(torch.float32, "cpu")
    grid = SparseGrid.from_points(2 * directions, voxel_size=0.2)
    rays = torch.full((camera.num_rays,), 2.0), torch.zeros_like(directions), directions
    latitude = torch.nn.functional.normalize(grid.voxel_positions(), dim=-1)[:, 1].abs()  # camera axes: y is up or down
    features = torch.ones(camera.num_rays, 1)
    _, plain = voxel_scatter(features, *rays, grid)
    _, weighed = voxel_scatter(features, *rays, grid, camera.solid_angle().reshape(-1))
    at_pole, at_equator = latitude > 0.99, latitude < 0.3
    assert plain[at_pole].max() > 8 * plain[at_equator].max()
    assert weighed[at_pole].max() < 2 * weighed[at_equator].max()
    assert weighed.sum().item() == pytest.approx(4 * math.pi, rel=1e-4)


@needs_native
def test_accumulating_writes_only_where_rays_end():
    """No [V, C] is allocated, zeroed or swept over by the scatter in place: NaN elsewhere stays NaN, bit for bit."""
    arguments = SCATTER_CASES["channels_8"].build()
    voxels = arguments["grid"].num_voxels
    hit = voxel_scatter(**arguments)[1] != 0
    payload = torch.full((voxels, 8), 0x7FC12345, dtype=torch.int32)
    sums = payload.clone().view(torch.float32), payload[:, 0].clone().view(torch.float32)
    voxel_scatter_(*sums, **arguments)
    untouched = ~hit
    assert 0 < hit.sum() < voxels
    assert torch.equal(sums[0].view(torch.int32)[untouched], payload[untouched])
    assert torch.equal(sums[1].view(torch.int32)[untouched], payload[untouched, 0])
