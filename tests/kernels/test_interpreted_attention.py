"""sphere_attention's tests on Triton's kernels in its interpreter: a file of its own, for another process to take."""

import pytest

from evoworld.testing_attention import ATTENTION_CASES
from tests.kernels.interpreted import AGREES, run_interpreted

pytest.importorskip("triton", reason="triton is not installed; it comes with torch on GPU machines")


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


def test_what_only_triton_has():
    run_interpreted(*(f"tests/kernels/test_sphere_attention_{what}.py" for what in ("parts", "backward")))
