"""The tables of the voxel ops on Triton's kernels in its interpreter."""

import pytest

from evoworld.testing import RENDER_CASES, SCATTER_CASES
from tests.kernels.interpreted import AGREES, run_interpreted

pytest.importorskip("triton", reason="triton is not installed; it comes with torch on GPU machines")


def test_voxel_scatter():
    names = [AGREES.format(name) for name in SCATTER_CASES]
    names.append("test_in_place_adds_to_what_is_there[triton-cpu]")
    traps = ["test_coordinates_300_m_away[triton-cpu]", "test_backends_take_the_same_cells[triton]"]
    run_interpreted(
        *(f"tests/ops/test_voxel_scatter.py::{name}" for name in names),
        *(f"tests/ops/test_numerical_traps.py::{name}" for name in traps),
    )


def test_volume_render():
    names = [AGREES.format(name) for name in RENDER_CASES]
    traps = ["test_alpha_of_thin_media[triton-cpu]", "test_zero_density_has_a_gradient[triton-cpu]"]
    run_interpreted(
        *(f"tests/ops/test_volume_render.py::{name}" for name in names),
        *(f"tests/ops/test_numerical_traps.py::{name}" for name in traps),
    )


def test_what_the_table_does_not_reach():
    run_interpreted("tests/kernels/test_blocks.py")
