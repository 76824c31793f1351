"""What the op tables do not reach: more channels than a block, blocks as small as a GPU's, 64-bit rows, raw arguments.

Runs where Triton interprets its kernels: see test_interpreted.py.
"""

from dataclasses import replace

import pytest
import torch

import evoworld
from evoworld.ops import volume_render, voxel_scatter
from evoworld.ops.library import grid_arguments, triton_interprets
from evoworld.testing import RENDER_CASES, SCATTER_CASES, check_against_reference

pytestmark = pytest.mark.skipif(not triton_interprets(), reason="TRITON_INTERPRET is not 1")
COARSE = replace(RENDER_CASES["coarse_step"], step=0.45, num_rays=40)  # few samples: the interpreter is slow


@pytest.fixture(autouse=True)
def on_triton():
    with evoworld.backend("triton"):
        yield


def raw(case):
    """The arguments of the raw op, a list."""
    given = case.build()
    tensors = [given[name] for name in ("features", "density", "origins", "directions", "jitter")]
    march = [given[name] for name in ("near", "far", "step", "min_transmittance", "image_width")]
    return [*tensors, *grid_arguments(given["grid"]), *march]


def test_more_channels_than_a_block():
    check_against_reference(volume_render, replace(COARSE, channels=130, name="channels_130"))
    check_against_reference(voxel_scatter, replace(SCATTER_CASES["channels_65"], channels=130, name="channels_130"))


def test_no_channels():
    check_against_reference(volume_render, replace(COARSE, channels=0, name="channels_0"))


@pytest.mark.parametrize("block", [8, 32])
def test_blocks_of_a_gpu(monkeypatch, block):
    from evoworld.kernels import launch

    monkeypatch.setattr(launch, "_INTERPRETED_BLOCK_R", block)
    for name in ("image_of_odd_width", "image_narrower_than_a_tile", "channels_3"):
        check_against_reference(voxel_scatter, SCATTER_CASES[name])
    if block == 32:  # each block of volume_render costs the interpreter seconds
        check_against_reference(volume_render, COARSE)


def test_rows_beyond_32_bits(monkeypatch):
    """The kernel that a table of 2^31 rows or more gets, on a small one."""
    import triton.language as tl
    from evoworld.kernels import volume_render as module
    from evoworld.kernels.launch import index_type

    assert (index_type(2**31 - 1), index_type(2**31)) == (tl.int32, tl.int64)
    monkeypatch.setattr(module, "index_type", lambda num_voxels: tl.int64)
    check_against_reference(volume_render, COARSE)


def test_each_gradient_alone_is_the_same():
    from evoworld.kernels.volume_render import volume_render as forward
    from evoworld.kernels.volume_render import volume_render_backward as backward

    arguments = raw(replace(COARSE, density="holes"))
    outputs = forward(*arguments)
    draw = torch.Generator().manual_seed(0)
    upstream = [torch.randn(x.shape, generator=draw) for x in outputs]
    together = backward(*upstream, *outputs, *arguments, True, True, True, False)
    for wanted in ((True, False, False), (False, True, False), (False, False, True), (False, False, False)):
        alone = backward(*upstream, *outputs, *arguments, *wanted, False)
        for one, all_of_them, want in zip(alone, together, (*wanted, wanted[2]), strict=True):
            assert torch.equal(one, all_of_them) if want else one.shape[0] == 0


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(7, 3).double(), "features: expected torch.float32 or torch.float16 or torch.bfloat16, got"),
        (1, torch.zeros(7), r"density: expected shape \[\d+\], got \[7\]"),
        (2, torch.zeros(3, 40).T, "origins: expected a contiguous tensor, got strides"),
        (3, torch.zeros(39, 3), r"directions: expected shape \[40, 3\], got \[39, 3\]"),
        (4, torch.zeros(40).half(), "jitter: expected torch.float32, got torch.float16"),
        (6, torch.zeros(1, 64, dtype=torch.int32), r"pages: expected shape \['any', 512\], got \[1, 64\]"),
    ],
)
def test_bad_raw_arguments(index, value, message):
    from evoworld.kernels.volume_render import volume_render as forward

    arguments = raw(COARSE)
    arguments[index] = value
    with pytest.raises(ValueError, match=message):
        forward(*arguments)
