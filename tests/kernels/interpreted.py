"""Runs tests on Triton's kernels in its interpreter, which needs no GPU: in a process of its own, as it is asked for by
the environment before triton is imported."""

import os
import re
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
AGREES = "test_agrees_with_the_reference[triton-cpu-{}]"


def run_interpreted(*tests: str) -> None:
    """Runs tests, each of which must exist, be run and pass."""
    environment = {name: value for name, value in os.environ.items() if name != "EVOWORLD_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5", *tests],
        cwd=SOURCE,
        env={**environment, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = done.stdout.splitlines()[-1]
    assert "skipped" not in summary, summary
    assert int(re.search(r"(\d+) passed", summary)[1]) >= len(tests), summary
