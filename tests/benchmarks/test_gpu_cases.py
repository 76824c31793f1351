"""What the GPU report times: the scene, the peers, the counts of work, the clock."""

import sys
import time
import types

import torch

from benchmarks import peers
from benchmarks.gpu import profiled, small_case
from benchmarks.gpu.context import Context
from benchmarks.gpu.device import CpuDevice, CudaDevice
from benchmarks.gpu.scene import cells_of_tiles, hall
from benchmarks.harness import Check, Contestant
from benchmarks.work import March, count_samples
from evoworld import reference
from evoworld.geometry import Panorama, SparseGrid, check_pose


def test_the_room_is_what_its_formulas_say():
    room = hall(tiny=True)
    camera = Panorama(16, 32)
    for index in range(8):
        check_pose(room.pose(index))
        origins, directions = room.rays(camera, index)
        assert room.signed_distance(origins[:1]).item() > 0.1
        depth = room.depth(origins, directions)
        surface = torch.addcmul(origins, directions, depth[:, None])
        assert room.signed_distance(surface).abs().max() < 1e-4
        before = torch.addcmul(origins, directions, 0.97 * depth[:, None])
        assert (room.signed_distance(before) > -1e-4).all()
        assert (room.grid.lookup((surface / room.voxel_size).floor().int()) >= 0).all()


def test_the_room_is_as_large_as_the_issue_asks():
    room = hall()
    assert room.extent == 256
    assert 0.05 <= room.occupied <= 0.10


def test_cells_of_tiles_counts_distinct_cells():
    width, rows = 8, 4
    directions = torch.tensor([0.0, 0.0, 1.0]).repeat(2 * width * rows, 1)
    origins = torch.zeros(2 * width * rows, 3)
    origins[: width * rows, 0] = torch.arange(width * rows) // 2  # 16 cells in one tile, 1 in the other
    assert cells_of_tiles(torch.ones(len(origins)), origins, directions, width, 1.0) == (16 + 1) / 2


def test_samples_are_counted():
    """One plane of lattice points with a density, across the ray."""
    grid = SparseGrid.from_points(torch.tensor([[0.5, 0.5, z] for z in (4.5, 8.5, 12.5)]), 1.0)
    density = torch.where(grid.voxel_positions()[:, 2] == 9.0, 1000.0, 0.0)
    march = March(torch.zeros(grid.num_voxels, 2), density, grid, 0.0, 20.0, 1.0)
    ray = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    work = count_samples(march, *ray, num_rays=10)
    # Bricks hold z = 4 .. 15, so cells from 3 on touch one; the ray stops at 8.5, in the first cell with a density.
    assert work.density_samples == 10 * 6 and work.feature_samples == 10 * 1
    assert work.flops(2) == (60 + 2 * 10) * 16


def fake_nerfacc() -> types.ModuleType:
    """Samples everywhere, where volume_render has them, and accumulates as nerfacc does."""

    class OccGridEstimator(torch.nn.Module):
        def __init__(self, box, resolution, levels):
            super().__init__()
            self.register_buffer("binaries", torch.zeros(levels, *resolution, dtype=torch.bool))

        def sampling(self, origins, directions, sigma_fn, near_plane, far_plane, render_step_size):
            starts = torch.arange(near_plane, far_plane - render_step_size / 2, render_step_size)
            rays = torch.arange(len(origins)).repeat_interleave(len(starts))
            starts = starts.repeat(len(origins))
            assert sigma_fn(starts, starts + render_step_size, rays).shape == starts.shape
            return rays, starts, starts + render_step_size

    def render_weight_from_density(starts, ends, density, ray_indices, n_rays):
        x = (density * (ends - starts)).view(n_rays, -1)
        transmittance = torch.exp(x - x.cumsum(1))
        return (transmittance * -torch.expm1(-x)).flatten(), transmittance, x

    def accumulate_along_rays(weights, values, ray_indices, n_rays):
        values = torch.ones(len(weights), 1) if values is None else values
        return torch.zeros(n_rays, values.shape[1]).index_add_(0, ray_indices, weights[:, None] * values)

    module = types.ModuleType("nerfacc")
    module.OccGridEstimator = OccGridEstimator
    module.render_weight_from_density = render_weight_from_density
    module.accumulate_along_rays = accumulate_along_rays
    return module


def test_nerfacc_is_asked_for_the_same_picture(monkeypatch):
    monkeypatch.setitem(sys.modules, "nerfacc", fake_nerfacc())
    peer = peers.load("nerfacc_render", [])
    monkeypatch.delitem(sys.modules, "benchmarks.peers.nerfacc_render")
    room = hall(tiny=True)
    features = torch.randn(room.grid.num_voxels, 5, generator=torch.Generator().manual_seed(0))
    march = March(features, room.density, room.grid, 0.05, 9.05, room.voxel_size / 2)
    rays = room.rays(Panorama(8, 16), 0)
    scene = peer.DenseScene(march)
    assert scene.estimator.binaries.any() and not scene.estimator.binaries.all()
    truth = reference.volume_render(features, room.density, *rays, room.grid, *march.arguments, min_transmittance=0.0)
    for found, expected in zip(scene.render(*rays), truth, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_wrong_result_of_ours_fails_the_stage_and_a_peers_does_not():
    context = Context(CpuDevice(), tiny=True)
    contestants = [
        Contestant("ours", lambda x: {"y": x + 1}),
        Contestant("theirs", lambda x: {"y": x + 1}),
        Contestant("broken", lambda x: 1 / 0),
    ]
    found = context.compare("case", contestants, [torch.ones(3)] * 2, Check({"y": torch.ones(3)}, 0.1), ["ours"])
    assert context.findings.failures == [f"case, ours: {found['ours'].refused}"]
    assert found["theirs"].refused and not found["theirs"].seconds
    assert found["broken"].refused == "ZeroDivisionError: division by zero"


def test_the_small_case_runs_every_op(capsys):
    assert small_case.main(["--backend", "cpu"]) == 0
    assert capsys.readouterr().out == "done\n"


def test_the_profiled_case_runs():
    assert profiled.main("cpu", tiny=True) == 0


def test_the_device_clock_starts_after_the_host_is_ahead(monkeypatch):
    events = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            events.append("record")

        def synchronize(self):
            events.append("synchronize")

        def elapsed_time(self, other):
            return 2.5  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: events.append(("sleep", cycles)), raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(L2_cache_size=50 << 20))
    device = CudaDevice()
    monkeypatch.setattr(device, "keep_warm", lambda: None)
    assert device.clock(lambda x: events.append(x), "work") == 2.5e-3
    (_, cycles), *rest = events
    assert rest == ["record", "work", "record", "synchronize"] and cycles > 1e6
    events.clear()
    device.clock(slow := lambda x: time.sleep(2e-3), None)
    device.clock(slow, None)
    sleeps = [event[1] for event in events if event[0] == "sleep"]
    assert sleeps[1] >= 1.5 * 2e-3 * 2e9  # longer than the host took before


def test_a_device_that_was_idle_is_warmed_up_first(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(L2_cache_size=50 << 20))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(CudaDevice, "name", "cpu")
    monkeypatch.setattr("benchmarks.gpu.device.WARM_UP_SIZE", 64)
    products = []
    monkeypatch.setattr(torch, "mm", lambda a, b: products.append(a.shape))
    device = CudaDevice()
    assert device.wall(lambda x: None, None) < 0.1
    assert len(products) > 10
    products.clear()
    device.wall(lambda x: None, None)
    assert not products
