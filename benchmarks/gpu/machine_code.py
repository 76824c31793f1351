"""What a CUDA library's machine code says without a GPU: registers, shared memory, spills, instructions, occupancy."""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

WARP = 32
REGISTERS = 64 << 10  # of a multiprocessor, on every architecture here
REGISTER_UNIT = 256  # registers are given to a warp in such portions
SCHEDULERS = 4  # each owns a quarter of the registers
RESERVED_SHARED = 1 << 10  # bytes of each block's shared memory that the system takes
SHARED_UNIT = 128


@dataclass(frozen=True)
class Limits:
    """What a multiprocessor holds at once."""

    warps: int
    blocks: int
    shared: int  # bytes


# By compute capability; CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
LIMITS = {
    80: Limits(64, 32, 164 << 10),
    86: Limits(48, 16, 100 << 10),
    87: Limits(48, 16, 164 << 10),
    89: Limits(48, 24, 100 << 10),
    90: Limits(64, 32, 228 << 10),
    100: Limits(64, 32, 228 << 10),
    103: Limits(64, 32, 228 << 10),
    120: Limits(48, 24, 100 << 10),
    121: Limits(48, 24, 100 << 10),
}


@dataclass
class Kernel:
    """One kernel as compiled for one architecture."""

    architecture: str  # "sm_90a"
    symbol: str
    name: str  # demangled
    registers: int = 0
    stack: int = 0  # bytes a thread
    shared: int = 0  # bytes a block, static
    local: int = 0  # bytes a thread
    threads: int = 0  # most a block may have: its launch bounds; 0 where it states none
    instructions: Counter = field(default_factory=Counter)  # by opcode with all its modifiers

    @property
    def capability(self) -> int:
        return int(re.match(r"sm_(\d+)", self.architecture)[1])

    @property
    def family(self) -> str:
        """The function's own name: "voxel_scatter_forward_kernel"; empty for what is not a kernel of this project."""
        match = re.search(r"\bevoworld::(?:[^<(]*::|\(anonymous namespace\)::)?(\w+_kernel)(?=[<(])", self.name)
        return match[1] if match else ""

    @property
    def arguments(self) -> str:
        """The template arguments as text: "float, 16"."""
        text = self.name.partition(self.family)[2]
        if not text.startswith("<"):
            return ""
        depth = 0
        for index, letter in enumerate(text):
            depth += (letter == "<") - (letter == ">")
            if depth == 0:
                return re.sub(r"\bevoworld::|\((?:int|bool|unsigned int)\)", "", text[1:index])
        return text

    @property
    def spills(self) -> int:
        """Loads and stores of local memory: spilled registers, or arrays that are indexed at run time."""
        return self.count("LDL", "STL")

    def count(self, *opcodes: str) -> int:
        """How many instructions have one of these opcodes, with whatever modifiers: "LDG.E.128", "REDG.E.ADD.F32x4"."""
        return sum(
            number
            for name, number in self.instructions.items()
            if any(name == opcode or name.startswith(opcode + ".") for opcode in opcodes)
        )

    def occupancy(self, dynamic_shared: int = 0, threads: int = 0) -> float:
        """Warps that a multiprocessor holds of those it could, with blocks as large as the launch bounds allow."""
        limits = LIMITS[self.capability]
        warps = -(-(threads or self.threads or 1024) // WARP)
        by_warps = limits.warps // warps
        registers = -(-self.registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
        by_registers = REGISTERS // SCHEDULERS // max(registers, 1) * SCHEDULERS // warps
        shared = -(-(self.shared + dynamic_shared + RESERVED_SHARED) // SHARED_UNIT) * SHARED_UNIT
        blocks = min(limits.blocks, by_warps, by_registers, limits.shared // shared)
        return blocks * warps / limits.warps


def find_tool(name: str) -> str | None:
    """A program of the CUDA toolkit: on PATH, beside the real nvcc, where CUDA is usually, or in triton's package."""
    folders = []
    if nvcc := shutil.which("nvcc"):
        folders.append(Path(nvcc).resolve().parent)
    folders += [Path("/usr/local/cuda/bin"), *sorted(Path("/usr/local").glob("cuda-*/bin"), reverse=True)]
    folders += [folder.parent / "compute-sanitizer" for folder in folders]
    triton = find_spec("triton")
    if triton and triton.origin:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    return shutil.which(name) or next((found for d in folders if (found := shutil.which(name, path=str(d)))), None)


@cache
def read_kernels(library: Path) -> tuple[Kernel, ...]:
    """Every kernel in a library (or cubin), for every architecture it holds.

    Raises:
        FileNotFoundError: where cuobjdump or the library is not there.
    """
    cuobjdump = find_tool("cuobjdump")
    if cuobjdump is None:
        raise FileNotFoundError("cuobjdump: expected it on PATH, beside nvcc or in triton's package, found none")
    if not library.is_file():
        raise FileNotFoundError(f"{library} is not there")
    kernels: dict[tuple[str, str], Kernel] = {}
    _read_resources(kernels, _lines(cuobjdump, "-res-usage", library))
    _read_threads(kernels, _lines(cuobjdump, "-elf", library))
    _read_instructions(kernels, _lines(cuobjdump, "-sass", library))
    names = _demangle([symbol for _, symbol in kernels])
    for kernel, name in zip(kernels.values(), names, strict=True):
        kernel.name = name
    return tuple(kernels.values())


def table(
    kernels: Sequence[Kernel], dynamic_shared: Callable[[Kernel], int] = lambda kernel: 0
) -> tuple[list[str], list[list[str]]]:
    """Header and rows for a report."""
    header = ["kernel", "arch", "registers", "shared", "threads", "occupancy", "spills", "LDG.128", "RED", "RED x4"]
    rows = []
    for kernel in sorted(kernels, key=lambda k: (k.family, k.arguments, k.capability)):
        shared = dynamic_shared(kernel)
        counts = (kernel.spills, kernel.count("LDG.E.128"), scalar_reductions(kernel), vector_reductions(kernel))
        rows.append(
            [
                f"{kernel.family}<{kernel.arguments}>" if kernel.arguments else kernel.family,
                kernel.architecture,
                str(kernel.registers),
                str(kernel.shared + shared),
                str(kernel.threads or "?"),
                f"{100 * kernel.occupancy(shared):.0f} %",
                *map(str, counts),
            ]
        )
    return header, rows


def vector_reductions(kernel: Kernel) -> int:
    """Additions of four floats to memory by one instruction (sm_90 and later)."""
    return kernel.count("REDG.E.ADD.F32x4", "RED.E.ADD.F32x4")


def scalar_reductions(kernel: Kernel) -> int:
    """Additions of one float to memory."""
    return kernel.count("REDG.E.ADD.F32", "RED.E.ADD.F32")


def _lines(cuobjdump: str, option: str, library: Path) -> Iterator[str]:
    command = [cuobjdump, option, str(library)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        yield from process.stdout
    if process.returncode != 0:
        raise RuntimeError(f"cuobjdump {option} {library.name} failed with exit code {process.returncode}")


def _read_resources(kernels: dict[tuple[str, str], Kernel], lines: Iterator[str]) -> None:
    architecture = symbol = ""
    for line in lines:
        if match := re.match(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            symbol = match[1]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            kernel = Kernel(architecture, symbol, symbol)
            kernel.registers, kernel.stack, shared, kernel.local = map(int, match.groups())
            # From sm_90 on, the figure of a kernel with any shared memory holds what the system takes.
            kernel.shared = max(shared - RESERVED_SHARED, 0) if kernel.capability >= 90 else shared
            kernels[architecture, symbol] = kernel


def _read_threads(kernels: dict[tuple[str, str], Kernel], lines: Iterator[str]) -> None:
    """Launch bounds, from the attributes in each kernel's .nv.info section."""
    architecture = symbol = ""
    wanted = False
    for line in lines:
        if line.startswith("arch = "):
            architecture = line.split()[2]
        elif line.startswith(".nv.info."):
            symbol = line.strip().removeprefix(".nv.info.")
        elif "EIATTR_" in line:
            wanted = "EIATTR_MAX_THREADS" in line or "EIATTR_REQNTID" in line
        elif wanted and "Value:" in line:
            x, y, z = (int(number, 16) for number in line.split()[1:4])
            if (architecture, symbol) in kernels:
                kernels[architecture, symbol].threads = x * y * z
            wanted = False


_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)")


def _read_instructions(kernels: dict[tuple[str, str], Kernel], lines: Iterator[str]) -> None:
    architecture = ""
    counter: Counter = Counter()
    for line in lines:
        if match := _INSTRUCTION.match(line):
            counter[match[1]] += 1
        elif "Function :" in line:
            kernel = kernels.get((architecture, line.split(":", 1)[1].strip()))
            counter = kernel.instructions if kernel else Counter()
        elif line.startswith("arch = "):
            architecture = line.split()[2]


def _demangle(symbols: Sequence[str]) -> list[str]:
    tool = shutil.which("c++filt") or find_tool("cu++filt")
    if tool is None:
        raise FileNotFoundError("c++filt: expected it on PATH, found none; it comes with binutils")
    found = subprocess.run([tool], input="\n".join(symbols), capture_output=True, text=True, check=True)
    return found.stdout.splitlines()
