"""No tensor per sample, point or pair exists, forward or backward: the peak of a process does not grow with them."""

import subprocess
import sys
import textwrap

import pytest

from evoworld.testing import backends, under_simt

pytest.importorskip("resource")
needs_native_attention = pytest.mark.skipif(
    ("cpu", "cpu") not in backends("sphere_attention"), reason="no native CPU library with this op"
)
needs_native = pytest.mark.skipif(("cpu", "cpu") not in backends("volume_render"), reason="no native CPU library")

PRELUDE = """
import resource, sys, torch
from evoworld.geometry import SparseGrid
from evoworld.ops import sphere_attention, volume_render, voxel_scatter, voxel_scatter_

def peak():  # bytes, the largest since the process began
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

torch.set_num_threads(1)
directions = torch.nn.functional.normalize(torch.randn(400, 3) * 0.2 + torch.tensor([0.0, 0.0, 1.0]), dim=-1)
"""

RENDER = """
grid = SparseGrid.from_points(2.0 * directions, 0.1)
features, density = torch.randn(grid.num_voxels, 4), 0.1 * torch.rand(grid.num_voxels)
leaves = [x.requires_grad_() for x in (features, density, torch.zeros(400, 3), directions)]

def go(samples):
    rendered = volume_render(*leaves, grid, near=1.9, far=2.1, step=0.2 / samples, min_transmittance=0.0)
    sum(x.sum() for x in rendered).backward()

go(20)
before = peak()
go(20000)  # 8 million samples: 32 MB for one float of each
print(peak() - before)
"""

SCATTER = """
shells = torch.cat([radius * directions for radius in (1.8, 1.9, 2.0, 2.1, 2.2)])
grid = SparseGrid.from_points(shells, 0.002)
sums = torch.zeros(grid.num_voxels, 64), torch.zeros(grid.num_voxels)
assert sums[0].nbytes > 30e6
features, depth = torch.randn(400, 64), torch.full((400,), 2.0)
sums[0].fill_(1)
before = peak()
voxel_scatter_(*sums, features, depth, torch.zeros(400, 3), directions, grid)
print(peak() - before)
"""


@needs_native
@pytest.mark.skipif(under_simt(), reason="the stacks of csrc/simt are larger than what this looks for")
@pytest.mark.parametrize("script", [RENDER, SCATTER], ids=["volume_render", "voxel_scatter_"])
def test_peak_memory(script):
    program = textwrap.dedent(PRELUDE + script)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8e6


PAIRS = """
directions = torch.nn.functional.normalize(torch.randn(8192, 3), dim=-1)

def go(tokens, radius):
    x = directions[:tokens]
    leaves = [torch.randn(1, 1, tokens, 16, requires_grad=True) for _ in range(3)]
    zonal, weight = torch.ones(1, 4, requires_grad=True), torch.zeros(tokens, requires_grad=True)
    output, lse = sphere_attention(*leaves, x, x, zonal, weight, radius=radius, return_lse=True)
    (output.sum() + lse.sum()).backward()

for radius in (None, 0.5):
    go(300, radius)
before = peak()
for radius in (None, 0.5):
    go(8192, radius)  # 67 million pairs: 67 MB for one byte of each
print(peak() - before)
"""

# Projections [B, L, 3, N, D] of 50 MB, and keys that all batches share: outputs and gradients of 16.8 MB each are new.
PROJECTIONS = """
directions = torch.nn.functional.normalize(torch.randn(64, 3), dim=-1)
projected = torch.randn(64, 64, 3, 8, 128)
query, key, value = projected.permute(2, 0, 3, 1, 4)
shared = torch.randn(1, 8, 64, 128).expand(64, 8, 64, 128)
sphere_attention(query[:1], key[:1], value[:1], directions, directions)
assert query.nbytes > 16e6
before = peak()
with torch.no_grad():
    output = sphere_attention(query, key, value, directions, directions)
    del output
    sphere_attention(query, shared, shared, directions, directions, radius=1.0)
print(peak() - before - query.nbytes)
"""


@needs_native_attention
@pytest.mark.skipif(under_simt(), reason="the stacks of csrc/simt are larger than what this looks for")
@pytest.mark.parametrize("script", [PAIRS, PROJECTIONS], ids=["pairs", "projections"])
def test_peak_memory_of_attention(script):
    program = textwrap.dedent(PRELUDE + script)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 10e6
