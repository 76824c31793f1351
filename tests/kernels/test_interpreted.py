"""The op tables on Triton's kernels in its interpreter, which needs no GPU: a process of its own, as it is asked for
by the environment before triton is imported."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from evoworld.testing import RENDER_CASES, SCATTER_CASES
from evoworld.testing_attention import ATTENTION_CASES

pytest.importorskip("triton", reason="triton is not installed; it comes with torch on GPU machines")

SOURCE = Path(__file__).resolve().parents[2]
AGREES = "test_agrees_with_the_reference[triton-cpu-{}]"


def run_interpreted(*tests: str) -> None:
    """Runs tests, each of which must exist, be run and pass."""
    environment = {name: value for name, value in os.environ.items() if name != "EVOWORLD_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5", *tests],
        cwd=SOURCE,
        env={**environment, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = done.stdout.splitlines()[-1]
    assert "skipped" not in summary, summary
    assert int(re.search(r"(\d+) passed", summary)[1]) >= len(tests), summary


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


def test_sphere_attention():
    run_interpreted(*(f"tests/ops/test_sphere_attention.py::{AGREES.format(name)}" for name in ATTENTION_CASES))


def test_sphere_attention_as_an_op():
    slow = "agrees_with or (opcheck and (radius or projection or no_keys or no_bias))"
    run_interpreted("-k", f"triton and not ({slow})", "tests/ops/test_sphere_attention.py")


def test_the_geometry_of_sphere_attention():
    run_interpreted("-k", "triton", *(f"tests/ops/test_sphere_attention_{what}.py" for what in ("edges", "symmetry")))


def test_layouts_of_sphere_attention():
    chosen = "triton and (width_17_16 or one_key_for_all or may_be_strided or expanded or copied or any_layout)"
    run_interpreted("-k", chosen, "tests/ops/test_sphere_attention_layouts.py")


def test_what_the_table_does_not_reach():
    run_interpreted("tests/kernels/test_blocks.py")
