"""Compiles sphere_attention's kernels for an architecture without a GPU, and reads the machine code of their loops."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.machine_code import find_tool
from benchmarks.report import table

triton = pytest.importorskip("triton", reason="triton is not installed; it comes with torch on GPU machines")

from evoworld.kernels.sphere_attention_columns import Places  # noqa: E402 - they import triton
from evoworld.kernels.sphere_attention_configs import Config  # noqa: E402
from evoworld.kernels.sphere_attention_tiles import TileLists  # noqa: E402
from evoworld.kernels.token_rows import Rows  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

SOURCE = Path(__file__).resolve().parents[2]
MATRIX_UNITS = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}
MUFU = 16  # exponentials, and
LANES = 128  # instructions of a thread, and
PRODUCTS = 2048  # multiply-adds of half precision, that a multiprocessor of sm_90 does in a cycle
TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
LISTS = TileLists("*i32", "*i32", "*i32", "i32")
_LINE = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)([^;]*);")
_MULTIPLES_OF_16 = ("pointer", "batch_stride", "head_stride", "row_stride", "head_stride", "num_places")


@dataclass(frozen=True)
class Loop:
    """A loop that runs matrix products and has no such loop inside."""

    instructions: Counter  # by opcode with all its modifiers
    logits: float  # a thread and turn

    def per_logit(self, *opcodes: str) -> float:
        """Instructions of these opcodes, or all, that a thread spends on a logit."""
        found = (n for name, n in self.instructions.items() if not opcodes or name.split(".")[0] in opcodes)
        return sum(found) / self.logits


@dataclass(frozen=True)
class Code:
    """What was read from a kernel's compiled form."""

    registers: int  # a thread
    spills: int  # bytes
    shared: int  # bytes a block
    loops: tuple[Loop, ...]
    instructions: Counter

    def has(self, opcode: str) -> bool:
        return any(name.split(".")[0] == opcode for name in self.instructions)


def rows_type(dtype: torch.dtype) -> Rows:
    return Rows(TYPES[dtype], "i32", "i32", "i32")


def places_type(columns: torch.dtype | None, ranged: bool, of_queries: bool, features: bool = False) -> Places:
    return Places(
        "*i32" if ranged and of_queries else None,
        "*fp32" if ranged else None,
        TYPES[columns] if columns else None,
        "i32",
        "*fp32" if features else None,
        "i32",
        "i32",
    )


def compile_kernel(
    function: object,
    arch: int,
    work: Config,
    arguments: Mapping[str, object],  # a type, a NamedTuple of types, or the value of a constant
) -> Code:
    """The kernel for tensors that torch allocated, whose rows are whole 16-byte vectors."""
    signature, constants, attributes = {}, {}, {}
    for i, (name, parameter) in enumerate(zip(function.arg_names, function.params, strict=True)):
        kind = arguments[name]
        if parameter.is_constexpr or kind is None:
            signature[name], constants[(i,)] = "constexpr", kind
        elif isinstance(kind, tuple):
            fields = [_field(kind, j) for j in range(len(kind))]
            signature[name] = type(kind)(*fields)
            constants.update({(i, j): None for j, field in enumerate(kind) if field is None})
            for j, field in enumerate(kind._fields):
                if field in _MULTIPLES_OF_16 or str(kind[j]).startswith("*"):
                    attributes[i, j] = [["tt.divisibility", 16]]
        else:
            signature[name] = kind
            if kind.startswith("*"):
                attributes[i,] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constants, attributes)
    options = {"num_warps": work.num_warps, "num_stages": work.num_stages}
    result = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return _read(result, arch, work)


def _field(kind: tuple, index: int) -> str:
    return "constexpr" if kind[index] is None else kind[index]


def _read(result: object, arch: int, work: Config) -> Code:
    ptx = result.asm["ptx"]
    assembler = triton.knobs.nvidia.ptxas_blackwell if arch >= 100 else triton.knobs.nvidia.ptxas
    target = re.search(r"\.target (\w+)", ptx)[1]
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [assembler.path, "-v", f"-arch={target}", "-o", str(binary), str(source)]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        command = [find_tool("cuobjdump"), "-sass", str(binary)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [(int(m[1], 16), m[2], m[3]) for m in map(_LINE.match, listing.splitlines()) if m]
    return Code(
        int(re.search(r"Used (\d+) registers", report)[1]),
        int(re.search(r"(\d+) bytes spill stores", report)[1]),
        result.metadata.shared,
        tuple(_loops(lines, work)),
        Counter(opcode for _, opcode, _ in lines),
    )


def _loops(lines: list[tuple[int, str, str]], work: Config) -> list[Loop]:
    spans = []
    for address, opcode, operands in lines:
        target = re.search(r"0x([0-9a-f]+)\s*(?:[&?].*)?$", operands) if opcode.startswith("BRA") else None
        if target and int(target[1], 16) <= address:
            spans.append((int(target[1], 16), address))
    inner = [a for a in spans if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    bodies = [Counter(opcode for address, opcode, _ in lines if first <= address <= last) for first, last in inner]
    logits = work.block_l * work.block_s / (32 * work.num_warps)
    return [Loop(body, logits) for body in bodies if any("MMA" in opcode or "FFMA" in opcode for opcode in body)]


def products(loop) -> float:
    """Multiply-adds of HGMMA for a logit of a whole tile, counted from their shapes such as 64x128x16."""
    found = 0
    for opcode, number in loop.instructions.items():
        if opcode.startswith("HGMMA"):
            m, n, k = map(int, opcode.split(".")[1].split("x"))
            found += number * m * n * k / 128  # by the threads of a warp group, as logits are counted
    return found / loop.logits


def write_table(name: str, builds: Sequence, compiled: Callable[..., Code]) -> None:
    """Prints a table of builds and writes it to build/NAME.md; of sm_90 also the cycles of a logit on each unit."""
    header = ["build", "L x S", "warps", "stages", "registers", "spilled", "shared", "a logit", "MUFU", "cycles"]
    rows = []
    for build in builds:
        code, work = compiled(build), build.work
        for loop in code.loops:
            cycles = ""
            if build.arch == 90 and build.dtype != torch.float32:
                times = products(loop) / PRODUCTS, loop.per_logit("MUFU") / MUFU, loop.per_logit() / LANES
                cycles = "matrix {:.3f}, exp {:.3f}, issue {:.3f}".format(*times)
            sizes = [f"{work.block_l} x {work.block_s}", work.num_warps, work.num_stages]
            counts = [code.registers, code.spills, code.shared]
            numbers = [f"{loop.per_logit():.2f}", f"{loop.per_logit('MUFU'):.2f}", cycles]
            rows.append([str(build), *map(str, sizes + counts), *numbers])
    lines = table(header, rows)
    print("\n".join(lines))
    if (SOURCE / "build").is_dir():
        (SOURCE / "build" / f"{name}.md").write_text("\n".join(lines) + "\n")
