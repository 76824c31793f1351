"""What the machine code of sphere_attention's backward promises without a GPU, for the configurations of its table.

No spills, matrix units that take probabilities from registers, no atomics, few instructions a logit. The table of all
builds is written to build/sphere_attention_backward_code.md, and printed by `pytest -rP`.
"""

from functools import cache
from typing import NamedTuple

import pytest
import torch

from benchmarks.gpu.machine_code import LIMITS, RESERVED_SHARED, find_tool

pytest.importorskip("triton", reason="triton is not installed; it comes with torch on GPU machines")

from evoworld.kernels.matmul import INTERPRETED
from evoworld.kernels.sphere_attention_backward_configs import backward_config
from evoworld.kernels.sphere_attention_configs import Config

from tests.kernels.attention_code import (
    LISTS,
    MATRIX_UNITS,
    Code,
    compile_kernel,
    places_type,
    products,
    rows_type,
    write_table,
)

HALF, BFLOAT, SINGLE = torch.float16, torch.bfloat16, torch.float32
KERNELS = ("key", "query")
MOST_INSTRUCTIONS = {("key", 64): 12.5, ("query", 64): 8.5, ("key", 128): 15.0, ("query", 128): 12.0}  # on sm_90
ATOMICS = {"ATOM", "ATOMG", "RED", "REDG", "UREDG", "UTMAREDG"}  # to global memory

pytestmark = [
    pytest.mark.skipif(bool(INTERPRETED), reason="TRITON_INTERPRET=1: kernels are interpreted, not compiled"),
    pytest.mark.skipif(find_tool("cuobjdump") is None, reason="cuobjdump comes with the CUDA toolkit and with triton"),
]


class Build(NamedTuple):
    kernel: str
    arch: int
    dtype: torch.dtype = BFLOAT
    width: int = 64
    columns: int = 16  # E
    ranged: bool = False

    def __str__(self):
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.kernel}-sm_{self.arch}-{dtype}-D{self.width}-E{self.columns}" + "-radius" * self.ranged

    @property
    def work(self) -> Config:
        return backward_config(self.kernel, self.width, self.dtype, self.arch, self.ranged)


BUILDS = [
    *(Build(k, arch, BFLOAT, d) for k in KERNELS for arch in (80, 90, 100) for d in (64, 128)),
    *(Build(k, 90, BFLOAT, d, ranged=True) for k in KERNELS for d in (64, 128)),
    *(Build(k, arch, BFLOAT, 128, ranged=True) for k in KERNELS for arch in (80, 100)),
    *(Build(k, 120, BFLOAT, d) for k in KERNELS for d in (64, 128)),
    *(Build(k, 90, BFLOAT, d, e) for k in KERNELS for d in (64, 128) for e in (0, 48)),
    *(Build(k, 100, BFLOAT, 128, 48) for k in KERNELS),
    *(Build(k, 90, HALF, d) for k in KERNELS for d in (64, 80)),
]
SPILLING = [Build("key", 90, BFLOAT, 96, 48, True), *(Build("key", a, BFLOAT, 128, 48, True) for a in (90, 100))]
SINGLE_BUILDS = [Build(k, arch, SINGLE, d) for k in KERNELS for arch in (80, 90) for d in (64, 128)]


@cache
def compiled(build: Build) -> Code:
    from evoworld.kernels import sphere_attention_backward_key as of_key
    from evoworld.kernels import sphere_attention_backward_query as of_query

    module = of_key if build.kernel == "key" else of_query
    function = getattr(module, f"sphere_attention_backward_{build.kernel}_kernel")
    columns = None if build.columns == 0 else SINGLE if build.dtype == SINGLE else BFLOAT
    rows = rows_type(build.dtype)
    unit = 16 // build.dtype.itemsize
    places = places_type(columns, build.ranged, of_queries=True, features=build.columns > 0)
    arguments = {
        **dict.fromkeys(("query", "key", "value", "d_output", "d_query", "d_key", "d_value"), rows),
        **dict.fromkeys(("log_sum", "delta", "d_log_weight"), "*fp32"),
        "d_columns": "*fp32" if build.columns else None,
        "queries": places,
        "keys": places,
        "lists": LISTS if build.ranged else None,
        **dict.fromkeys(("heads", "first_batch"), "i32"),
        **dict.fromkeys(("factor", "scale", "max_chord2"), "fp32"),
        "SIGN": 1,
        **dict.fromkeys(("D", "DV", "OUT_D", "OUT_DV"), build.width),
        "E": build.columns,
        **dict.fromkeys(("UNIT", "OUT_UNIT"), unit),
        "BLOCK_L": build.work.block_l,
        "BLOCK_S": build.work.block_s,
        "PRECISION": "ieee" if build.dtype == SINGLE else "tf32",
        **dict.fromkeys(("WANTS_KEY_VALUE", "WANTS_LOG_WEIGHT", "WANTS_QUERY"), True),
        "WANTS_ZONAL": build.columns > 0,
    }
    return compile_kernel(function, build.arch, build.work, arguments)


@pytest.mark.parametrize("build", BUILDS + SPILLING, ids=str)
def test_nothing_is_spilled_and_products_run_on_matrix_units(build):
    code = compiled(build)
    assert code.spills == 0 if build not in SPILLING else code.spills <= 32  # masks and 48 columns take registers
    assert code.has(MATRIX_UNITS[build.arch]), sorted(code.instructions)
    assert code.shared + RESERVED_SHARED <= LIMITS[build.arch].shared
    assert not any(code.has(name) for name in ATOMICS), "sums in an order that nothing fixes"
    if build.arch != 100:  # where a pipeline's ends are loops too
        assert len(code.loops) == 1 + build.ranged


@pytest.mark.parametrize("build", SINGLE_BUILDS, ids=str)
def test_float32_is_multiplied_as_float32(build):
    """No TensorFloat-32 unless it is asked for."""
    code = compiled(build)
    assert code.spills == 0
    assert not any(code.has(unit) for unit in MATRIX_UNITS.values())
    count = 4 if build.kernel == "key" else 3  # products of this width
    assert min(loop.per_logit("FFMA") for loop in code.loops) >= count * build.width


@pytest.mark.parametrize("columns", [0, 16, 48])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_loop(kernel, width, columns):
    (loop,) = compiled(Build(kernel, 90, BFLOAT, width, columns)).loops
    assert loop.per_logit() <= MOST_INSTRUCTIONS[kernel, width] + (columns > 16)
    assert 1.0 <= loop.per_logit("MUFU") < 1.1
    names = {name.split(".")[0] for name in loop.instructions}
    assert not names & {"STS", "STSM"}, "probabilities go to the next product by registers"
    assert "LDGSTS" in names and "LDG" not in names, "tiles are loaded ahead of their use"


@pytest.mark.parametrize("width", [64, 128])
def test_what_a_bias_costs(width):
    """16 columns more: for a log weight or zonal in the logits, for d_zonal in the sums by query."""
    for kernel, sums in (("key", 2), ("query", 1)):
        plain, biased = (compiled(Build(kernel, 90, BFLOAT, width, columns)).loops[0] for columns in (0, 16))
        more = 16 if kernel == "key" else 32
        assert products(plain) == (2 + sums) * width
        assert products(biased) == products(plain) + more
        assert biased.per_logit() - plain.per_logit() < 1.5


@pytest.mark.parametrize("kernel", KERNELS)
def test_tiles_within_the_radius_are_not_masked(kernel):
    inside, partial = sorted(compiled(Build(kernel, 90, ranged=True)).loops, key=lambda loop: loop.per_logit())
    assert inside.per_logit("FSETP", "FSEL") < 0.1 < 1 <= partial.per_logit("FSETP", "FSEL")
    assert inside.per_logit() < compiled(Build(kernel, 90)).loops[0].per_logit() + 2


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_the_small_kernel_compiles(arch):
    from evoworld.kernels.sphere_attention_backward import _DELTA_BLOCK, sphere_attention_delta_kernel

    arguments = {
        **dict.fromkeys(("output", "d_output"), rows_type(BFLOAT)),
        **dict.fromkeys(("lse", "d_lse", "zonal", "log_sum", "delta"), "*fp32"),
        "queries": places_type(BFLOAT, True, of_queries=True),
        "heads": "i32",
        "ZONAL": 2,
        "DV": 128,
        "EXACT": False,
        "UNIT": 8,
        "BLOCK": _DELTA_BLOCK,
    }
    assert compile_kernel(sphere_attention_delta_kernel, arch, Config(64, 64, 4, 1), arguments).spills == 0


def test_table():
    """Not a check: all builds, and for sm_90 the cycles of a logit on the three units that it keeps busy."""
    write_table("sphere_attention_backward_code", BUILDS + SPILLING + SINGLE_BUILDS, compiled)
