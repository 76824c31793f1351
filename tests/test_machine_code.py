"""What the CUDA library's machine code promises without a GPU: every kernel, no spills, wide loads, vector reductions.

Reads the library that is there (`EVOWORLD_LIBRARY_DIR` names another one) and compiles no kernel. The table of all
kernels is written to build/machine_code.md, and printed by `pytest -rP`.
"""

import shutil
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import evoworld
from benchmarks.gpu import machine_code
from benchmarks.gpu.machine_code import Kernel
from benchmarks.report import table
from evoworld import _native

SOURCE = Path(__file__).resolve().parent.parent
SIZES = {"float": 4, "Half": 2, "BFloat16": 2}  # bytes of a feature
CHANNELS = (4, 8, 16, 32, 64)  # with a specialisation of their own; 0 is any number


@dataclass(frozen=True)
class Design:
    """What a family of kernels takes of a multiprocessor, and what it is compiled for."""

    registers: int  # a thread, at most
    occupancy: float  # of the warps that a multiprocessor can hold, at least, on every architecture
    arguments: tuple[str, ...] = ("",)  # of the template, one for each kernel
    shared: int = 0  # bytes of a block's dynamic shared memory, at most
    struct: str = ""  # what that memory is: csrc/cuda file and C++ type
    wide_loads: int | None = None  # the template argument that says how many features one load takes
    vector_reductions: bool = False  # adds rows to memory


def _each(*per_dtype: str, dtypes: tuple[str, ...] = tuple(SIZES)) -> tuple[str, ...]:
    return tuple(f"{dtype}, {rest}" for dtype in dtypes for rest in per_dtype)


_NARROW = ("Half", "BFloat16")

DESIGN = {
    # voxel_scatter: dtype, channels (0: any), values a load
    "voxel_scatter_forward_kernel": Design(
        registers=64,
        occupancy=0.33,
        arguments=(
            *_each("0, 1", "0, 4"),
            *_each(*(f"{c}, 4" for c in CHANNELS), dtypes=("float",)),
            *_each("4, 4", *(f"{c}, 8" for c in CHANNELS[1:]), dtypes=_NARROW),
        ),
        shared=35872,
        struct="voxel_scatter.cu: Shared<Layout<0, 1>>",
        wide_loads=2,
        vector_reductions=True,
    ),
    "voxel_scatter_backward_kernel": Design(
        registers=80,
        occupancy=0.33,
        arguments=_each("0, 1", "0, 4", *(f"{c}, 4" for c in CHANNELS)),
        shared=35840,
        struct="voxel_scatter_backward.cu: Shared",
        wide_loads=2,
    ),
    "voxel_scatter_rows_kernel": Design(registers=64, occupancy=0.5),
    "voxel_scatter_pieces_kernel": Design(registers=64, occupancy=0.5, arguments=tuple(SIZES)),
    "voxel_scatter_join_kernel": Design(registers=64, occupancy=0.5),
    # volume_render: dtype, then channels of a row that a lane reads alone, or values a load
    "volume_render_points_kernel": Design(registers=40, occupancy=0.75),
    "volume_render_cells_kernel": Design(registers=40, occupancy=0.75),
    "volume_render_forward_kernel": Design(
        registers=96,
        occupancy=0.31,
        arguments=(*_each("4", "8"), *_each("16", dtypes=_NARROW)),
        wide_loads=1,
    ),
    "volume_render_forward_wide_kernel": Design(
        registers=128,
        occupancy=0.25,
        arguments=(*_each("1", "4"), *_each("8", dtypes=_NARROW)),
        shared=9216,
        struct="volume_render.cu: WideShared",
        wide_loads=1,
    ),
    "volume_render_backward_kernel": Design(
        registers=128,
        occupancy=0.25,
        arguments=(*_each("1", "4"), *_each("8", dtypes=_NARROW)),
        shared=18432,
        struct="volume_render_backward.cu: BackwardShared",
        wide_loads=1,
        vector_reductions=True,
    ),
    # the sparse grid
    "missing_bricks_kernel": Design(registers=48, occupancy=0.6),
    "brick_keys_z_kernel": Design(registers=32, occupancy=1.0),
    "brick_keys_xy_kernel": Design(registers=32, occupancy=1.0),
    "gather_bricks_kernel": Design(registers=32, occupancy=1.0),
    "insert_bricks_kernel": Design(registers=32, occupancy=1.0),
    "pages_around_kernel": Design(registers=32, occupancy=0.9),
    "page_activity_kernel": Design(registers=32, occupancy=0.9),
    "page_distances_kernel": Design(
        registers=48, occupancy=0.5, shared=4716, struct="sparse_grid_insert.cu: Neighbourhood"
    ),
}


@cache
def _kernels() -> tuple[Kernel, ...]:
    return tuple(kernel for kernel in machine_code.read_kernels(_native.path("cuda")) if kernel.family)


@pytest.fixture(scope="module")
def kernels() -> tuple[Kernel, ...]:
    """The project's kernels in the library, for every architecture; skips where there is no library to read."""
    library = _native.path("cuda")
    if library is None or not library.is_file():
        reasons = [line for line in _native.left_out() if "cuda" in line or "every native library" in line]
        pytest.skip("; ".join(reasons) or f"{library} is not there")
    if machine_code.find_tool("cuobjdump") is None:
        pytest.skip("cuobjdump was not found: it comes with the CUDA toolkit and with triton")
    return _kernels()


def name(kernel: Kernel) -> str:
    return f"{kernel.family}<{kernel.arguments}> for {kernel.architecture}"


def complaints(kernels, wrong) -> list[str]:
    """`wrong` says in words what is wrong with a kernel, or nothing."""
    return [f"{name(kernel)}: {text}" for kernel in kernels if (text := wrong(kernel))]


def loads_sixteen_bytes(kernel: Kernel) -> bool:
    """Whether a kernel's rows, of features or of float32 sums, come in vectors that fill 16 bytes."""
    place = DESIGN[kernel.family].wide_loads
    if place is None:
        return False
    arguments = kernel.arguments.split(", ")
    floats = "backward" in kernel.family and int(arguments[place]) > 1  # reads rows of float32 too
    return floats or int(arguments[place]) * SIZES[arguments[0]] >= 16


def adds_vectors(kernel: Kernel) -> bool:
    return DESIGN[kernel.family].vector_reductions and int(kernel.arguments.split(", ")[-1]) > 1


def test_no_kernel_is_missing_on_any_architecture(kernels):
    found = defaultdict(set)
    for kernel in kernels:
        found[kernel.architecture].add((kernel.family, kernel.arguments))
    wanted = {(family, arguments) for family, design in DESIGN.items() for arguments in design.arguments}
    for architecture, there in found.items():
        assert there == wanted, architecture
    if _native.folder() == Path(evoworld.__file__).parent / "lib":
        built = pytest.importorskip("evoworld._C", reason="evoworld._C knows what was asked for").build_facts()
        entries = built["cuda_architectures"].split(";")
        assert set(found) == {f"sm_{entry.partition('+')[0].replace('.', '')}" for entry in entries}


def test_no_kernel_keeps_anything_in_local_memory(kernels):
    """Neither spilled registers nor arrays that are indexed at run time: their traffic would go through the L1."""

    def wrong(kernel: Kernel) -> str:
        if kernel.stack or kernel.local or kernel.spills:
            return f"{kernel.stack} bytes of stack, {kernel.local} local, {kernel.spills} loads and stores of them"
        return ""

    assert complaints(kernels, wrong) == []


def test_registers_and_occupancy_are_what_the_design_assumes(kernels):
    def wrong(kernel: Kernel) -> str:
        design = DESIGN[kernel.family]
        if kernel.threads == 0:
            return "states no launch bounds"
        if kernel.registers > design.registers:
            return f"{kernel.registers} registers, expected at most {design.registers}"
        occupancy = kernel.occupancy(design.shared)
        if occupancy < design.occupancy:
            return f"occupancy {occupancy:.2f}, expected at least {design.occupancy}"
        return ""

    assert complaints(kernels, wrong) == []


def test_rows_are_read_sixteen_bytes_at_a_time(kernels):
    readers = [kernel for kernel in kernels if loads_sixteen_bytes(kernel)]
    assert readers
    assert complaints(readers, lambda k: "" if k.count("LDG.E.128") else "no LDG.E.128") == []


def test_rows_are_added_by_vector_reductions_where_the_processor_has_them(kernels):
    adders = [kernel for kernel in kernels if adds_vectors(kernel)]
    assert adders

    def wrong(kernel: Kernel) -> str:
        vector, scalar = machine_code.vector_reductions(kernel), machine_code.scalar_reductions(kernel)
        if kernel.capability >= 90:
            return "" if vector else "no REDG.E.ADD.F32x4"
        return "" if scalar >= 4 and not vector else f"{vector} vector and {scalar} scalar reductions"

    assert complaints(adders, wrong) == []


def test_no_sum_waits_for_what_was_there(kernels):
    """An atomic addition whose result is used is a round trip: sums of floats are reductions, which return nothing."""

    def wrong(kernel: Kernel) -> str:
        returned = [opcode for opcode in kernel.instructions if opcode.startswith("ATOM") and "ADD.F" in opcode]
        return ", ".join(returned)

    assert complaints(kernels, wrong) == []


def test_blocks_take_no_more_shared_memory_than_the_table_says(tmp_path):
    """The structs that blocks are launched with, by a compiler's word: the machine code does not know their size."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ was not found")
    for family, design in DESIGN.items():
        if not design.struct:
            continue
        file, struct = design.struct.split(": ")
        source = tmp_path / f"{family}.cpp"
        check = f'static_assert(sizeof({struct}) <= {design.shared}, "{family}");'
        source.write_text(f'#include "cuda/{file}"\nnamespace evoworld {{ namespace {{ {check} }} }}\n')
        command = [compiler, "-std=c++20", "-DEW_SIMT", f"-I{SOURCE / 'csrc'}", "-w", "-fsyntax-only", source]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-800:]


def test_table(kernels):
    """Not a check: what all kernels take, for whoever reads the test's output."""
    header, rows = machine_code.table(kernels, lambda kernel: DESIGN[kernel.family].shared)
    lines = table(header, rows)
    print("\n".join(lines))
    if (SOURCE / "build").is_dir():
        (SOURCE / "build" / "machine_code.md").write_text("\n".join(lines) + "\n")
    assert len(rows) == len(kernels)
