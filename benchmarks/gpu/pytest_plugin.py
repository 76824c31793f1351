"""A pytest plugin: records each test of the op table as it ends, by backend, and picks a backend's tests.

`python -m pytest -p benchmarks.gpu.pytest_plugin --record FILE --serve triton tests/ops`
"""

import json
from pathlib import Path

import pytest

from benchmarks.gpu.op_tests import OTHERS


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmarks.gpu")
    group.addoption("--record", type=Path, metavar="FILE", help="write one JSON line a test")
    group.addoption("--serve", metavar="NAMES", help="run the tests of these backends alone; others: of none")
    group.addoption("--every", type=int, default=1, metavar="N", help="run every Nth of them")


def pytest_configure(config: pytest.Config) -> None:
    if record := config.getoption("--record"):
        record.write_text("")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--serve")
    kept = [item for item in items if not wanted or backend_of(item) in wanted.split(",")]
    kept = kept[:: config.getoption("--every")]
    left = [item for item in items if item not in set(kept)]
    config.hook.pytest_deselected(items=left)
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
        "message": "" if report.passed else str(call.excinfo.value)[:500],
    }
    with record.open("a") as file:
        file.write(json.dumps(line) + "\n")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Notes which test begins: if the process dies of it, the record says so."""
    if record := item.config.getoption("--record"):
        with record.open("a") as file:
            file.write(json.dumps({"begun": item.nodeid}) + "\n")
