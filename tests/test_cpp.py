"""Builds csrc/cpu and tests/cpp under sanitizers, without torch, and runs them."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent
# float-cast-overflow is not part of undefined. ThreadSanitizer sees nothing new where there is one thread only.
RUNS = {
    "address,undefined,float-cast-overflow": [],
    "thread": ["parallel", "threads", "scatter_drops", "not_wanted"],
}

pytestmark = [
    pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "c++")), reason="there is no C++ compiler to test with"),
]


@pytest.mark.parametrize("sanitizers", RUNS)
def test_cpp_tests_are_clean_under_sanitizers(tmp_path, sanitizers):
    settings = {
        "CMAKE_BUILD_TYPE": "Debug",
        "EVOWORLD_BUILD_PACKAGE": "OFF",
        "EVOWORLD_BUILD_TESTS": "ON",
        "EVOWORLD_SANITIZE": sanitizers,
    }
    arguments = [f"-D{name}={value}" for name, value in settings.items()]
    run(["cmake", "-GNinja", "-S", SOURCE, "-B", tmp_path, *arguments])
    run(["cmake", "--build", tmp_path])
    output = run([tmp_path / "evoworld_cpp_tests", *RUNS[sanitizers]])
    assert re.search(r"^[1-9]\d* tests, 0 failed$", output, re.MULTILINE), output


def run(command: list) -> str:
    # A forked child that starts threads is what one test is about.
    environment = os.environ | {"TSAN_OPTIONS": "die_after_fork=0"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout[-4000:]}\n{result.stderr[-8000:]}"
    return result.stdout
