"""Runs tests in a process of their own, as what they need is asked for by the environment before anything is loaded."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]


def run_tests(environment: Mapping[str, str], *tests: str) -> None:
    """Runs tests, each of which must exist, be run and pass."""
    kept = {name: value for name, value in os.environ.items() if name != "EVOWORLD_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5", *tests],
        cwd=SOURCE,
        env={**kept, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = done.stdout.splitlines()[-1]
    assert "skipped" not in summary, summary
    assert int(re.search(r"(\d+) passed", summary)[1]) >= len(tests), summary
