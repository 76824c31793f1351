"""A pytest plugin: records each test of the op table as it ends, by backend, and picks a backend's tests.

`python -m pytest -p benchmarks.gpu.pytest_plugin --record FILE --serve triton tests/ops`
"""

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.op_tests import OTHERS

LARGE = "test_large_tables"  # tens of gigabytes a test: one at a time of all the processes that test side by side


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmarks.gpu")
    group.addoption("--record", type=Path, metavar="FILE", help="write one JSON line a test")
    group.addoption("--serve", metavar="NAMES", help="run the tests of these backends alone; others: of none")
    group.addoption("--part", default="0/1", metavar="I/N", help="run every Nth of them, from number I on")


def pytest_configure(config: pytest.Config) -> None:
    if record := config.getoption("--record"):
        record.write_text("")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--serve")
    kept = [item for item in items if not wanted or backend_of(item) in wanted.split(",")]
    first, step = map(int, config.getoption("--part").split("/"))
    kept = kept[first::step]
    chosen = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = kept


def parameters_of(item: pytest.Item) -> dict:
    """What a test is parametrised with."""
    return item.callspec.params if hasattr(item, "callspec") else {}


def backend_of(item: pytest.Item) -> str:
    """The backend that a test is parametrised with."""
    return parameters_of(item).get("backend") or OTHERS


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = (yield).get_result()
    record = item.config.getoption("--record")
    if not record or (report.when != "call" and report.passed):
        return
    line = {
        "test": item.nodeid,
        "backend": backend_of(item),
        "device": parameters_of(item).get("device", ""),
        "outcome": report.outcome,
        "seconds": report.duration,
        "message": "" if report.passed else " ".join(call.excinfo.exconly().split())[:500],
    }
    with record.open("a") as file:
        file.write(json.dumps(line) + "\n")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Notes which test begins: if the process dies of it, the record says so."""
    if record := item.config.getoption("--record"):
        with record.open("a") as file:
            file.write(json.dumps({"begun": item.nodeid}) + "\n")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    record = item.config.getoption("--record")
    if not record or item.path.stem != LARGE:
        yield
        return
    with record.with_name(f"{LARGE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # the others cannot have what this process keeps for later
