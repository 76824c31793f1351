"""The benchmark harness: it refuses wrong results, interleaves, and says what it measured."""

import json
import math

import pytest
import torch

from benchmarks import harness, machine, peers, report
from benchmarks.harness import Check, Contestant, Row, Target

CEILINGS = machine.Ceilings(copy_bytes_per_second=1e9, flops_per_second=1e10)


def square(x):
    return {"y": x * x}


@pytest.fixture
def inputs():
    return [torch.arange(4.0) + i for i in range(3)]


def test_wrong_results_are_refused_and_not_timed(inputs):
    wrong = {
        "off": lambda x: {"y": x * x + 1e-2},
        "nan": lambda x: {"y": x * x * math.nan},
        "shape": lambda x: {"y": (x * x)[1:]},
        "name": lambda x: {"z": x * x},
    }
    contestants = [Contestant("right", square), *(Contestant(name, run) for name, run in wrong.items())]
    rows = harness.compare("squares", contestants, inputs, Check(square(inputs[0]), 1e-4), repeats=3)
    assert rows["right"].refused == "" and len(rows["right"].seconds) == 3
    for name, expected in {"off": "off by", "nan": "off by nan", "shape": "shape (3,)", "name": "y is missing"}.items():
        assert expected in rows[name].refused
        assert rows[name].seconds == []
        assert math.isnan(harness.ratio(rows, name, "right"))


def test_an_error_within_the_tolerance_passes(inputs):
    rows = harness.compare(
        "squares",
        [Contestant("close", lambda x: {"y": x * x + 1e-4})],
        inputs,
        Check(square(inputs[0]), 1e-3),
        repeats=1,
    )
    assert rows["close"].refused == ""


def test_each_contestant_may_have_its_own_check(inputs):
    contestants = [Contestant("square", square), Contestant("cube", lambda x: {"y": x**3})]
    checks = {"square": Check(square(inputs[0]), 0.0), "cube": Check(square(inputs[0]), 0.0)}
    rows = harness.compare("powers", contestants, inputs, checks, repeats=1)
    assert rows["square"].refused == "" and "off by" in rows["cube"].refused


def test_contestants_take_turns_and_inputs_rotate(inputs):
    calls = []

    def contestant(name):
        def run(x):
            calls.append((name, int(x[0])))
            return square(x)

        return Contestant(name, run)

    harness.compare("turns", [contestant("a"), contestant("b")], inputs, Check(square(inputs[0]), 0.0), repeats=3)
    assert calls[:2] == [("a", 0), ("b", 0)]  # the checks
    assert calls[2:] == [("a", 1), ("b", 1), ("a", 2), ("b", 2), ("a", 0), ("b", 0)]


def test_no_input_is_an_error():
    with pytest.raises(ValueError, match="at least one input"):
        harness.compare("none", [Contestant("a", square)], [], Check({}, 0.0), repeats=1)


def test_ratio_is_of_medians():
    rows = {"slow": Row("c", "slow", [4.0, 6.0, 100.0]), "fast": Row("c", "fast", [2.0, 1.0, 3.0])}
    assert harness.ratio(rows, "slow", "fast") == 3.0
    assert math.isnan(harness.ratio(rows, "absent", "fast"))


@pytest.mark.parametrize(
    ("measured", "at_least", "verdict"),
    [
        (5.0, True, "met"),
        (4.9, True, "missed"),
        (5.0, False, "met"),
        (5.1, False, "missed"),
        (math.nan, True, "not measured"),
    ],
)
def test_verdicts(measured, at_least, verdict):
    assert Target("claim", measured, 5.0, at_least).verdict == verdict


def test_inputs_pass_the_cache():
    cache = harness.last_level_cache_bytes()
    assert cache >= 1 << 16
    assert harness.inputs_beyond_cache(cache, available=100) == harness.CACHE_MULTIPLE
    assert harness.inputs_beyond_cache(cache // 10, available=100) >= 10 * harness.CACHE_MULTIPLE
    assert harness.inputs_beyond_cache(cache // 10, available=3) == 3
    assert harness.inputs_beyond_cache(100 * cache, available=1) == 1


def test_ceilings_and_machine_are_measured():
    ceilings = machine.measure_ceilings(scale=0.01)
    assert ceilings.copy_bytes_per_second > 1e7 and ceilings.flops_per_second > 1e7
    facts = machine.describe()
    assert facts["torch"] == torch.__version__ and int(facts["cores"]) >= 1 and facts["commit"]


def example_report():
    rows = [
        Row("case", "ours", [2e-3, 1e-3, 3e-3], bytes=1e6, flops=1e6, note="fine"),
        Row("case", "theirs", refused="y is off by 1e+00"),
    ]
    targets = [Target("ours beats theirs", math.nan, 5.0, True), Target("ours", 2.0, 80.0, False, "ms")]
    quality = [{"capture": "room", "by": "memory", "PSNR": 30.123, "fit s": math.nan}]
    facts = {"processor": "a | b"}
    return report.Report(facts, CEILINGS, ["room"], rows, targets, quality, ["theirs: not there"], ["a note"])


def test_markdown_tables():
    lines = report.markdown(example_report()).splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
    cells = {line.split("|")[2].strip(): [cell.strip() for cell in line.split("|")[1:-1]] for line in tables}
    # 1 MB in 2 ms is half of 1 GB/s; 1 MFLOP in 2 ms a twentieth of 10 GFLOP/s.
    assert cells["ours"] == ["case", "ours", "2", "1", "1", "50.0 %", "1", "5.0 %", "fine"]
    assert cells["theirs"][-1] == "refused: y is off by 1e+00"
    assert ["ours beats theirs", "-", ">= 5 x", "not measured", ""] in cells.values()
    assert ["ours", "2 ms", "<= 80 ms", "met", ""] in cells.values()
    assert ["room", "memory", "30.12", "-"] in cells.values()
    assert "a / b" in cells
    assert "* theirs: not there" in lines and "* a note" in lines


def test_files_hold_what_was_measured(tmp_path):
    made = example_report()
    written = report.write(made, tmp_path / "results" / "run")
    assert [path.name for path in written] == ["run.md", "run.json"]
    assert written[0].read_text() == report.markdown(made)
    document = json.loads(written[1].read_text())
    assert document["rows"][0]["median"] == 2e-3 and document["rows"][0]["minimum"] == 1e-3
    assert document["rows"][1]["median"] is None
    assert [target["verdict"] for target in document["targets"]] == ["not measured", "met"]


def test_a_missing_peer_is_named_once_with_how_to_get_it(monkeypatch):
    def absent(name):
        raise ImportError("No module named 'warp'")

    monkeypatch.setattr(peers.importlib, "import_module", absent)
    missing = []
    assert peers.load("warp_splat", missing) is None
    assert peers.load("warp_splat", missing) is None
    assert len(missing) == 1
    assert "No module named 'warp'" in missing[0] and "pip install warp-lang" in missing[0]


def test_strays_are_allowed_where_they_are_expected_and_nan_never():
    expected = torch.ones(1000)
    found = expected.clone()
    found[3] = 2.0
    assert "off by 1.0e+00" in Check({"y": expected}, 0.1).complaint({"y": found})
    check = Check({"y": expected}, 0.1, strays=2e-3)
    assert check.complaint({"y": found}) == ""
    assert "off by" in check.complaint({"y": found.index_fill(0, torch.arange(5), 2.0)})
    assert "nan" in check.complaint({"y": found.index_fill(0, torch.tensor([7]), math.nan)})
