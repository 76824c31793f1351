"""The CUDA kernels, executed on the CPU by csrc/simt: plainly, in shuffled orders, under sanitizers, for races.

The builds stay in build/simt, so that only what has changed is compiled again.
"""

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent
BUILD = SOURCE / "build" / "simt"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
FOLDERS = {"plain": "lib", "sanitized": "lib_sanitized", "race": "lib_race"}
TABLE = [
    "tests/ops/test_voxel_scatter.py",
    "tests/ops/test_volume_render.py",
    "tests/ops/test_sparse_grid.py",
    "-k",
    "agrees_with_the_reference[cpu-cpu or sparse_grid",
]
EVERYTHING = [*TABLE[:3], "tests/ops/test_numerical_traps.py", "-k", "not [reference-cpu"]
# The variant, the seed of its schedule, and what is run: each finds what the others cannot.
RUNS = [
    pytest.param("plain", 0, EVERYTHING, id="in_order"),
    pytest.param("plain", 1, TABLE, id="shuffled"),
    pytest.param("plain", 20260101, TABLE, id="shuffled_otherwise"),
    pytest.param("sanitized", 0, TABLE, id="sanitized"),
    pytest.param("race", 2, TABLE, id="race"),
]
# Runs pytest once it is certain that the ops are the CUDA kernels.
PYTEST = "import sys, pytest; from evoworld.testing import under_simt; assert under_simt(); sys.exit(pytest.main())"
EXPECTED_SKIP = re.compile(r"csrc/simt")  # what a test cannot see under it, such as its own threads

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler to test with"),
    pytest.mark.skipif(sys.platform != "linux", reason="the sanitizers are preloaded the way of Linux"),
]


@functools.cache
def build(variant: str) -> Path:
    """Builds one of the variants: the folder of its library and its tests."""
    target = "evoworld_simt" if variant == "plain" else f"evoworld_simt_{variant}"
    run(["cmake", "-GNinja", "-S", SOURCE, "-B", BUILD, "-DEVOWORLD_SIMT=ON", f"-DPython_EXECUTABLE={sys.executable}"])
    run(["cmake", "--build", BUILD, "--target", target, f"{target}_tests"], timeout=1200)
    return BUILD / FOLDERS[variant]


@pytest.mark.parametrize("variant", FOLDERS)
def test_primitives_and_planted_bugs(variant):
    output = run([build(variant) / "evoworld_simt_tests"], ASAN_OPTIONS="detect_leaks=0")
    assert re.search(r"^[1-9]\d* tests, 0 failed$", output, re.MULTILINE), output


@pytest.mark.parametrize(("variant", "seed", "tests"), RUNS)
def test_ops(variant, seed, tests):
    """The tests of the ops pass on the CUDA kernels, which serve under the name of the CPU's."""
    environment = {"EVOWORLD_LIBRARY_DIR": build(variant), "EVOWORLD_SIMT_SEED": seed, "OMP_NUM_THREADS": 2}
    if variant == "sanitized":
        # An abandoned launch leaks. libstdc++: AddressSanitizer looks for its __cxa_throw before Python has loaded it.
        preload = " ".join(str(library_of_the_compiler(name)) for name in ("libasan.so", "libstdc++.so.6"))
        environment |= {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0"}
    pytest_here = [sys.executable, "-c", PYTEST, "-q", "-rs", "-p", "no:cacheprovider"]
    output = run([*pytest_here, *tests], timeout=1200, **environment)
    assert re.search(r"^[1-9]\d* passed", output, re.MULTILINE), output
    skips = [line for line in output.splitlines() if line.startswith("SKIPPED")]
    assert all(EXPECTED_SKIP.search(line) for line in skips), "\n".join(skips)


def library_of_the_compiler(name: str) -> Path:
    names = [name, "libclang_rt.asan-x86_64.so", "libclang_rt.asan-aarch64.so"] if name == "libasan.so" else [name]
    for candidate in names:
        path = Path(run([COMPILER, f"-print-file-name={candidate}"]).strip())
        if path.is_absolute():
            return path
    raise FileNotFoundError(f"{COMPILER} has no {name}")


def run(command: list, timeout: float = 300, **environment) -> str:
    environment = os.environ | {name: str(value) for name, value in environment.items()}
    result = subprocess.run(command, capture_output=True, text=True, cwd=SOURCE, env=environment, timeout=timeout)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout[-4000:]}\n{result.stderr[-8000:]}"
    return result.stdout
