"""Runs tests on Triton's kernels in its interpreter, which needs no GPU."""

from tests.fresh_process import run_tests

AGREES = "test_agrees_with_the_reference[triton-cpu-{}]"


def run_interpreted(*tests: str) -> None:
    """Runs tests, each of which must exist, be run and pass."""
    run_tests({"TRITON_INTERPRET": "1"}, *tests)
