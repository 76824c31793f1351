"""Builds csrc/cpu and tests/cpp under AddressSanitizer and UndefinedBehaviorSanitizer, without torch, and runs them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "c++")), reason="there is no C++ compiler to test with")
def test_cpp_tests_are_clean_under_sanitizers(tmp_path):
    settings = {
        "CMAKE_BUILD_TYPE": "Debug",
        "EVOWORLD_BUILD_PACKAGE": "OFF",
        "EVOWORLD_BUILD_TESTS": "ON",
        "EVOWORLD_SANITIZE": "address,undefined",
    }
    arguments = [f"-D{name}={value}" for name, value in settings.items()]
    run(["cmake", "-GNinja", "-S", SOURCE, "-B", tmp_path, *arguments])
    run(["cmake", "--build", tmp_path])
    output = run([tmp_path / "evoworld_cpp_tests"])
    assert " 0 failed" in output and not output.startswith("0 tests")


def run(command: list) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout[-4000:]}\n{result.stderr[-8000:]}"
    return result.stdout
