"""What the machine code of sphere_attention's forward promises without a GPU, for the configurations of its table.

No spills, matrix units, few instructions a logit in the inner loop. The table of all builds is written to
build/sphere_attention_code.md, and printed by `pytest -rP`.
"""

from functools import cache
from typing import NamedTuple

import pytest
import torch

from benchmarks.gpu.machine_code import LIMITS, RESERVED_SHARED, find_tool

pytest.importorskip("triton", reason="triton is not installed; it comes with torch on GPU machines")

from evoworld.kernels import sphere_attention_configs as configs
from evoworld.kernels.matmul import INTERPRETED

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
MOST_INSTRUCTIONS = {64: 10.0, 128: 10.0}  # a logit, by width, on sm_90 with a bias of degree 1

pytestmark = [
    pytest.mark.skipif(bool(INTERPRETED), reason="TRITON_INTERPRET=1: kernels are interpreted, not compiled"),
    pytest.mark.skipif(find_tool("cuobjdump") is None, reason="cuobjdump comes with the CUDA toolkit and with triton"),
]


class Build(NamedTuple):
    arch: int
    dtype: torch.dtype = BFLOAT
    width: int = 64
    value_width: int = 64
    columns: int = 16  # E
    ranged: bool = False

    def __str__(self):
        dtype = str(self.dtype).removeprefix("torch.")
        text = f"sm_{self.arch}-{dtype}-D{self.width}-Dv{self.value_width}-E{self.columns}"
        return text + "-radius" * self.ranged

    @property
    def work(self) -> configs.Config:
        return configs.config(max(self.width, self.value_width), self.dtype, self.arch, self.ranged)


BUILDS = [
    *(Build(arch, BFLOAT, d, d) for arch in (80, 90, 100, 120) for d in (64, 128)),
    *(Build(arch, BFLOAT, d, d, ranged=True) for arch in (80, 90, 100) for d in (64, 128)),
    *(Build(90, BFLOAT, d, d, e) for d in (64, 128) for e in (0, 48)),
    Build(90, HALF, 64, 64),
    Build(90, BFLOAT, 72, 80),
    Build(90, BFLOAT, 96, 32),
    Build(90, BFLOAT, 16, 41),
]
SINGLE_BUILDS = [Build(arch, SINGLE, 64, 64) for arch in (80, 90)]


@cache
def compiled(build: Build) -> Code:
    from evoworld.kernels.sphere_attention import sphere_attention_forward_kernel

    columns = None if build.columns == 0 else SINGLE if build.dtype == SINGLE else BFLOAT
    rows = rows_type(build.dtype)
    unit = 16 // build.dtype.itemsize
    arguments = {
        **dict.fromkeys(("query", "key", "value", "output"), rows),
        "lse": "*fp32",
        "queries": places_type(columns, build.ranged, of_queries=True),
        "keys": places_type(columns, build.ranged, of_queries=False),
        "zonal": "*fp32" if build.columns else None,
        "lists": LISTS if build.ranged else None,
        "heads": "i32",
        "factor": "fp32",
        "max_chord2": "fp32",
        "SIGN": 1,
        "D": build.width,
        "DV": build.value_width,
        "E": build.columns,
        "ZONAL": 2 if build.columns else 0,
        "UNIT": unit,
        "OUTPUT_UNIT": unit if build.value_width % unit == 0 else 1,
        "BLOCK_L": build.work.block_l,
        "BLOCK_S": build.work.block_s,
        "PRECISION": "ieee",
    }
    return compile_kernel(sphere_attention_forward_kernel, build.arch, build.work, arguments)


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_nothing_is_spilled_and_products_run_on_matrix_units(build):
    code = compiled(build)
    assert code.spills == 0
    assert code.has(MATRIX_UNITS[build.arch]), sorted(code.instructions)
    assert code.shared + RESERVED_SHARED <= LIMITS[build.arch].shared
    assert len(code.loops) == (2 if build.ranged else 1)


@pytest.mark.parametrize("build", SINGLE_BUILDS, ids=str)
def test_float32_is_multiplied_as_float32(build):
    """No TensorFloat-32 unless it is asked for. Triton keeps whole rows of a tile for such products, and may spill."""
    code = compiled(build)
    assert not any(code.has(unit) for unit in MATRIX_UNITS.values())
    assert min(loop.per_logit("FFMA") for loop in code.loops) >= build.width + build.value_width


@pytest.mark.parametrize("columns", [0, 16, 48])
@pytest.mark.parametrize("width", [64, 128])
def test_instructions_a_logit(width, columns):
    """An exponential is as dear as 8 instructions, two products of 64 as 9: the rest must fit beside them."""
    (loop,) = compiled(Build(90, BFLOAT, width, width, columns)).loops
    assert loop.per_logit() <= MOST_INSTRUCTIONS[width]
    assert 1.0 <= loop.per_logit("MUFU") < 1.1


@pytest.mark.parametrize("width", [64, 128])
def test_what_a_bias_costs(width):
    """On the matrix units 16 of the width's multiply-adds more, elsewhere next to nothing."""
    plain, biased = (compiled(Build(90, BFLOAT, width, width, columns)).loops[0] for columns in (0, 16))
    assert products(biased) == products(plain) * (2 * width + 16) / (2 * width)
    assert biased.per_logit() - plain.per_logit() < 0.5


def test_tiles_within_the_radius_are_not_masked():
    inside, partial = sorted(compiled(Build(90, ranged=True)).loops, key=lambda loop: loop.per_logit())
    dense = compiled(Build(90)).loops[0]
    assert inside.per_logit("FSETP", "FSEL") < 0.1 < 1 <= partial.per_logit("FSETP", "FSEL")
    assert inside.per_logit() < dense.per_logit() + 3


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_the_small_kernels_compile(arch):
    """Those that make columns and lists of tiles."""
    from evoworld.kernels import sphere_attention_columns as columns
    from evoworld.kernels import sphere_attention_tiles as tiles

    work = configs.Config(128, 128, 4, 1)
    numbers = dict.fromkeys(("num_tokens", "num_places", "num_near", "num_far", "width"), "i32")
    pointers = dict.fromkeys(("directions", "zonal", "log_weight", "out_directions", "out_features"), "*fp32")
    places = {**numbers, **pointers, "order": "*i32", "inverse_scale": "fp32", "DEGREE": 3, "BLOCK": 128}
    for of_keys in (False, True):
        for width, parts, kind in ((16, 1, "*fp32"), (48, 3, "*bf16")):
            rest = {"out_columns": kind, "OF_KEYS": of_keys, "PARTS": parts, "E": width}
            assert compile_kernel(columns.sphere_attention_places_kernel, arch, work, {**places, **rest}).spills == 0
    balls = {**numbers, "directions": "*fp32", "balls": "*fp32", "BLOCK": 128}
    assert compile_kernel(tiles.sphere_attention_balls_kernel, arch, work, balls).spills == 0
    lists = {**numbers, **dict.fromkeys(("lists", "inside", "met"), "*i32"), "near": "*fp32", "far": "*fp32"}
    lists |= {"max_chord": "fp32", "ROW_RUNS": 8, "COLUMN_RUNS": 8, "BLOCK": tiles._SCAN}
    work = work._replace(num_warps=tiles._SCAN_WARPS)
    assert compile_kernel(tiles.sphere_attention_lists_kernel, arch, work, lists).spills == 0


def test_table():
    """Not a check: all builds, and for sm_90 the cycles of a logit on the three units that it keeps busy."""
    write_table("sphere_attention_code", BUILDS + SINGLE_BUILDS, compiled)
