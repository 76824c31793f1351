"""Builds the native libraries for this card alone, and the program that measures the ceilings."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.findings import Findings, Table
from benchmarks.gpu.machine_code import find_tool, read_kernels, table
from benchmarks.gpu.stages import NotThere, supervise, tail


@dataclass(frozen=True)
class Place:
    """Where things are: the clone, and a folder in it for what is built."""

    root: Path
    work: Path

    @property
    def package(self) -> Path:
        return self.work / "package"

    @property
    def library(self) -> Path:
        return self.package / "lib" / "libevoworld_cuda.so"

    @property
    def ceilings(self) -> Path:
        return self.work / "ceilings"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to use what was built."""
        return {"EVOWORLD_LIBRARY_DIR": str(self.library.parent), "PYTHONUNBUFFERED": "1"}

    @property
    def check_environment(self) -> dict[str, str]:
        """The same for a process that runs beside others: it must not start a thread for each core."""
        return {**self.environment, "OMP_NUM_THREADS": "2"}


def architecture_of(capability: tuple[int, int]) -> str:
    """The entry of EVOWORLD_CUDA_ARCHS for a card: (9, 0) -> "9.0a", (12, 0) -> "12.0"."""
    suffix = "a" if capability == (9, 0) else ""
    return f"{capability[0]}.{capability[1]}{suffix}"


def build_libraries(place: Place, capability: tuple[int, int], limit: float) -> Findings:
    """Runs CMake and ninja; what was built before and has not changed is kept."""
    environment = _tools() | {"EVOWORLD_CUDA_ARCHS": architecture_of(capability)}
    native = place.work / "native"
    log = place.work / "build.log"
    (place.package / "lib").mkdir(parents=True, exist_ok=True)
    configure = [
        "cmake",
        "-GNinja",
        "-S",
        place.root,
        "-B",
        native,
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DEVOWORLD_PACKAGE_DIR={place.package}",
    ]
    for command in (configure, ["cmake", "--build", native]):
        if problem := supervise(command, limit, log, place.root, environment):
            return Findings(failures=[f"{' '.join(map(str, command[:2]))}: {problem}\n{tail(log)}"])
    left_out = (place.package / "lib" / "left_out.txt").read_text().splitlines()
    failures = [line for line in left_out if line.startswith(("libevoworld", "every", "CUDA"))]
    facts = {"built for": f"sm_{architecture_of(capability).replace('.', '')}"}
    return Findings(facts=facts, failures=failures, missing=[line for line in left_out if line not in failures])


def build_ceilings(place: Place, capability: tuple[int, int], limit: float) -> Findings:
    """Compiles ceilings.cu with nvcc."""
    nvcc = find_tool("nvcc")
    if nvcc is None:
        raise NotThere("nvcc was not found: the ceilings are not measured")
    number = architecture_of(capability).replace(".", "")
    source = Path(__file__).with_name("ceilings.cu")
    command = [
        nvcc,
        "-std=c++20",
        "-O3",
        f"-gencode=arch=compute_{number},code=sm_{number}",
        f"-I{place.root / 'csrc'}",
    ]
    log = place.work / "ceilings_build.log"
    problem = supervise([*command, source, "-o", place.ceilings], limit, log, place.root, _tools())
    return Findings(failures=[f"nvcc: {problem}\n{tail(log)}"] if problem else [])


def read_machine_code(place: Place, limit: float) -> Findings:
    """The table of registers, shared memory, occupancy and instructions of each kernel."""
    try:
        kernels = [kernel for kernel in read_kernels(place.library) if kernel.family]
    except FileNotFoundError as error:
        raise NotThere(str(error)) from error
    return Findings(tables=[Table("Kernels, as compiled (static shared memory alone)", *table(kernels))])


def _tools() -> dict[str, str]:
    """The environment in which cmake, ninja and nvcc are found: they may lie beside python, or not be on PATH."""
    folders = [str(Path(sys.executable).parent)]
    environment = {}
    if nvcc := find_tool("nvcc"):
        folders.append(str(Path(nvcc).parent))
        environment["CUDACXX"] = nvcc
    environment["PATH"] = os.pathsep.join([*folders, os.environ.get("PATH", "")])
    missing = [tool for tool in ("cmake", "ninja") if not shutil.which(tool, path=environment["PATH"])]
    if missing:
        raise RuntimeError(f"no {' and '.join(missing)}; pip install {' '.join(missing)}")
    return environment
