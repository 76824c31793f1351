"""V * C beyond 2^31: products of rows and channels are formed in 64 bits.

A brick far up in a table is the same brick as in a small table. The large table is memory that is reserved and never
touched but where that brick lies: gigabytes of addresses, kilobytes of memory. What the ops would allocate and zero
themselves at that size (the gradients of volume_render's rows) takes real memory, so a GPU is asked for that alone.
"""

import mmap
import sys

import pytest
import torch

from evoworld.geometry import SparseGrid
from evoworld.ops.library import grid_arguments, namespace
from evoworld.testing import backends, under_simt

MAP_NORESERVE = 0x4000  # of Linux; not every Python names it
BACKENDS = [b for b in backends("volume_render") if b[0] != "reference"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is reserved by mmap's MAP_NORESERVE")
on_every_backend = pytest.mark.parametrize(("backend", "device"), BACKENDS)
tables = pytest.mark.parametrize(
    ("channels", "dtype"),
    [(16, torch.float32), (5, torch.bfloat16), (128, torch.float16), (250, torch.bfloat16), (1000, torch.float32)],
)


def reserved(shape, dtype, device):
    """A tensor of zeros that takes no memory until it is written to."""
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    count = torch.Size(shape).numel()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize, flags=flags), dtype=dtype).view(shape)


class Tables:
    """Two neighbouring bricks: in the small table numbers 0 and 1, in the large one 0 and ``far``."""

    def __init__(self, channels, device):
        grid = SparseGrid.from_bricks(torch.tensor([[0, 0, 0], [1, 0, 0]]), 0.25)
        self.far = (1 << 31) // (64 * channels) + 7
        assert self.far * 64 * channels > 1 << 31 and self.far < 1 << 31
        self.small = grid_arguments(grid.to(device))
        pages = self.small[1].clone()
        pages[pages == 1] = self.far
        self.large = (self.small[0], pages, *self.small[2:])
        self.num_rows = 64 * (self.far + 1)

    def enlarge(self, small):  # [128, ...] -> [64 far + 64, ...]
        large = reserved((self.num_rows, *small.shape[1:]), small.dtype, small.device.type)
        large[:64], large[-64:] = small[:64], small[64:]
        return large

    def shrink(self, large):  # [64 far + 64, ...] -> [128, ...]
        return torch.cat([large[:64], large[-64:]])


def rays(count, device):
    """From below both bricks, upwards; depths end anywhere in them."""
    draw = torch.Generator().manual_seed(0)
    origins = torch.rand(count, 3, generator=draw) * torch.tensor([1.7, 0.7, 0.0]) + 0.02
    directions = torch.nn.functional.normalize(torch.tensor([0.1, 0.05, 1.0]).expand(count, 3), dim=-1)
    depth = 0.7 * torch.rand(count, generator=draw) + 0.01
    return [x.contiguous().to(device) for x in (depth, origins, directions)]


@on_every_backend
@tables
@pytest.mark.parametrize("deterministic", [False, True])
def test_scatter(backend, device, channels, dtype, deterministic):
    if backend == "triton" and deterministic:
        pytest.skip("has no deterministic way")
    table, ops = Tables(channels, device), namespace(backend)
    inputs = (torch.randn(40, channels).to(device, dtype), *rays(40, device), None)
    sums = {}
    for name, grid, num_rows in (("small", table.small, 128), ("large", table.large, table.num_rows)):
        shapes = (num_rows, channels), (num_rows,)
        sums[name] = [reserved(shape, torch.float32, device) for shape in shapes]
        ops.voxel_scatter_(*sums[name], *inputs, *grid, 0, deterministic)
    assert sums["small"][1][64:].count_nonzero() > 20
    for small, large in zip(sums["small"], sums["large"], strict=True):
        torch.testing.assert_close(table.shrink(large), small)


@on_every_backend
@tables
def test_scatter_backward(backend, device, channels, dtype):
    table, ops = Tables(channels, device), namespace(backend)
    inputs = (torch.randn(40, channels).to(device, dtype), *rays(40, device), None)
    d_sums = torch.randn(128, channels, device=device), torch.randn(128, device=device)
    expected = ops.voxel_scatter_backward(*d_sums, *inputs, *table.small, 0, True, True, True)
    d_large = map(table.enlarge, d_sums)
    found = ops.voxel_scatter_backward(*d_large, *inputs, *table.large, 0, True, True, True)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)


@on_every_backend
@tables
def test_render(backend, device, channels, dtype):
    if under_simt() and channels < 100:
        pytest.skip("the kernels look at every brick's densities once, minutes for millions of bricks")
    table, ops = Tables(channels, device), namespace(backend)
    _, *lines = rays(40, device)
    march = (0.0, 1.0, 0.05, 1e-4, 0)
    tensors = torch.randn(128, channels).to(device, dtype), 3 * torch.rand(128).to(device)
    large = [table.enlarge(x) for x in tensors]
    expected = ops.volume_render(*tensors, *lines, None, *table.small, *march)
    found = ops.volume_render(*large, *lines, None, *table.large, *march)
    upstream = [torch.randn_like(x) for x in expected]
    on_gpu = device != "cpu"
    wanted = (on_gpu, on_gpu, True, False)
    d_expected = ops.volume_render_backward(*upstream, *expected, *tensors, *lines, None, *table.small, *march, *wanted)
    d_found = ops.volume_render_backward(*upstream, *found, *large, *lines, None, *table.large, *march, *wanted)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)
    for x, y in zip(d_found[2:], d_expected[2:], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
    assert d_expected[2].count_nonzero() > 80
    for x, y in zip(d_found[:2], d_expected[:2], strict=True):
        torch.testing.assert_close(table.shrink(x) if on_gpu else x, y, rtol=1e-4, atol=1e-5)
