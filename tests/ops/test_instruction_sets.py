"""Kernels of the CPU for instruction sets below the best that this processor has, which alone runs elsewhere."""

import pytest

from evoworld import _native
from evoworld.testing import backends
from tests.fresh_process import run_tests

ISAS = ["baseline", "avx2", "avx512", "avx512_bf16"]
OPS = ("voxel_scatter", "volume_render", "sphere_attention")


@pytest.mark.skipif(("cpu", "cpu") not in backends("sphere_attention"), reason="no native CPU library")
@pytest.mark.parametrize("isa", ISAS[:-1])
def test_agrees_with_the_reference(isa):
    best = _native.fact("cpu", "evoworld_cpu_isa")
    if ISAS.index(isa) >= ISAS.index(best):
        pytest.skip(f"this processor has no more than {best}, which all other tests run")
    environment = {"EVOWORLD_CPU_ISA": isa, "TRITON_INTERPRET": "0"}
    run_tests(environment, "-k", "agrees and cpu-cpu", *(f"tests/ops/test_{op}.py" for op in OPS))
