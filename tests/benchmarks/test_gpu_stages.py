"""The stages of the GPU report: how they are run, and what each makes of its tools, which are fakes here."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import build, op_tests, pipeline, profile, sanitizer
from benchmarks.gpu.build import Place
from benchmarks.gpu.findings import Findings, Table
from benchmarks.gpu.stages import Budget, NotThere, Stage, run_stages, run_worker, supervise
from benchmarks.harness import Row, Target

ROOT = Path(__file__).resolve().parents[2]


def silent(line: str) -> None:
    pass


def test_a_failing_stage_is_an_outcome_and_the_others_run():
    def broken(limit):
        raise RuntimeError("no such kernel\nmore of it")

    def absent(limit):
        raise NotThere("no such tool")

    lines = []
    groups = [
        [Stage("good", 9, lambda limit: Findings(notes=["found"])), Stage("broken", 9, broken)],
        [Stage("absent", 9, absent), Stage("refused", 9, lambda limit: Findings(failures=["wrong", "twice"]))],
        [Stage("after broken", 9, lambda limit: Findings(), ("good", "broken"))],
        [Stage("after good", 9, lambda limit: Findings(), ("good",))],
    ]
    outcomes = {outcome.name: outcome for outcome in run_stages(groups, Budget(60), lines.append)}
    statuses = {name: outcome.status for name, outcome in outcomes.items()}
    assert statuses == {
        "good": "passed",
        "broken": "failed",
        "absent": "skipped",
        "refused": "failed",
        "after broken": "skipped",
        "after good": "passed",
    }
    assert outcomes["broken"].error == "RuntimeError: no such kernel\nmore of it"
    assert outcomes["after broken"].error == "needs broken" and outcomes["absent"].error == "no such tool"
    assert outcomes["refused"].error == "wrong; twice" and outcomes["good"].findings.notes == ["found"]
    assert any(line.startswith("broken: failed after 0 s: RuntimeError: no such kernel") for line in lines)


def test_stages_of_a_group_run_side_by_side_and_groups_one_after_another():
    def sleep(limit):
        time.sleep(0.5)
        return Findings()

    start = time.monotonic()
    run_stages([[Stage("a", 9, sleep), Stage("b", 9, sleep)], [Stage("c", 9, sleep)]], Budget(60), silent)
    assert 1.0 <= time.monotonic() - start < 1.45


def test_a_stage_gets_what_time_is_left_and_is_skipped_without():
    limits = []

    def note(limit):
        limits.append(limit)
        return Findings()

    outcomes = run_stages([[Stage("a", 50, note)], [Stage("b", 10, note)]], Budget(30), silent)
    assert [o.status for o in outcomes] == ["passed", "passed"]
    assert limits[0] == pytest.approx(30, abs=1) and limits[1] == 10
    late = Budget(30, start=time.monotonic() - 28)
    assert [(o.status, o.error) for o in run_stages([[Stage("a", 50, note)]], late, silent)] == [
        ("skipped", "no time left")
    ]


def test_a_command_is_ended_with_its_children(tmp_path):
    alive = tmp_path / "alive"
    child = f"import time, pathlib\nwhile True: pathlib.Path({str(alive)!r}).touch(); time.sleep(0.05)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    problem = supervise([sys.executable, "-c", parent], 2, tmp_path / "log", tmp_path)
    assert problem == "stopped after 2 s" and alive.exists()
    time.sleep(0.2)
    alive.unlink()
    time.sleep(0.5)
    assert not alive.exists()


@pytest.mark.parametrize(
    ("code", "problem"),
    [("print('hello')", ""), ("raise SystemExit(3)", "exit code 3"), ("import os; os.abort()", "ended by signal 6")],
)
def test_how_a_command_ended(tmp_path, code, problem):
    assert supervise([sys.executable, "-c", code], 60, tmp_path / "log", tmp_path) == problem
    assert problem or (tmp_path / "log").read_text() == "hello\n"


def test_what_a_stage_saved_survives_its_crash(tmp_path):
    lines = [
        "import os",
        "def run(context):",
        " context.note('halfway')",
        " print('last words', flush=True)",
        " os.abort()",
    ]
    (tmp_path / "crashing.py").write_text("\n".join(lines))
    environment = {"PYTHONPATH": str(tmp_path)}
    found = run_worker("crashing", ["--device", "cpu"], 60, tmp_path, ROOT, environment)
    assert found.notes == ["halfway"]
    assert len(found.failures) == 1 and "ended by signal 6" in found.failures[0] and "last words" in found.failures[0]


def test_findings_survive_json(tmp_path):
    found = Findings(
        rows=[Row("case", "ours", [1e-3, 2e-3], bytes=5.0), Row("case", "theirs", refused="wrong")],
        targets=[Target("claim", math.nan, 2.0, False)],
        tables=[Table("title", ["a"], [["b"]])],
        facts={"GPU": "a card"},
        rates={"copy bytes/s": 1e12},
    )
    found.save(tmp_path / "found.json")
    loaded = Findings.load(tmp_path / "found.json")
    assert loaded.rows[0].median == 1.5e-3 and math.isnan(loaded.rows[0].flops)
    assert loaded.targets[0].verdict == "not measured" and loaded.tables == found.tables
    assert Findings.load(tmp_path / "absent.json") == Findings()
    loaded.add(Findings(notes=["more"], rates={"fill bytes/s": 2e12}))
    assert loaded.notes == ["more"] and set(loaded.rates) == {"copy bytes/s", "fill bytes/s"}


def test_what_a_stage_needs_comes_before_it():
    before: set[str] = set()
    for group in pipeline.plan(Place(ROOT, ROOT), pipeline.Options(profile=True), (9, 0)):
        for stage in group:
            assert set(stage.needs) <= before and stage.name not in before
        before |= {stage.name for stage in group}


def program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def place(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    return Place(ROOT, work)


def test_the_plan_for_a_gpu(place):
    groups = [[stage.name for stage in group] for group in pipeline.plan(place, pipeline.Options(), (9, 0))]
    assert groups[0] == ["build", "ceilings build", "attention_compile"]  # what is missing is known once it is built
    checks = {"machine", "tests of the CUDA kernels", "tests of the Triton kernels", "compute-sanitizer memcheck"}
    assert checks < set(groups[1])
    assert {"tests of sphere_attention by Triton", "compute-sanitizer memcheck, Triton"} < set(groups[1])
    times = ["render", "scatter", "attention", "memory", "attention_peers", "compiled"]
    assert groups[2:] == [["ceilings"], *([name] for name in times)]
    quick = pipeline.plan(place, pipeline.Options(quick=True), (9, 0))
    assert [group[0].name for group in quick[2:]] == ["ceilings", "render", "scatter", "attention", "memory"]
    assert pipeline.plan(place, pipeline.Options(profile=True), (9, 0))[-1][0].name == "profile"


@pytest.mark.parametrize(("capability", "entry"), [((8, 0), "8.0"), ((9, 0), "9.0a"), ((12, 0), "12.0")])
def test_the_architecture_of_a_card(capability, entry):
    assert build.architecture_of(capability) == entry


def test_the_peers_that_compile_too_long_are_no_failure(place, monkeypatch):
    def late(module, *_):
        name = module.removeprefix("benchmarks.gpu.")
        return Findings(failures=[f"{name}: stopped after 90 s; the end of its output:\nmore", "wrong"])

    monkeypatch.setattr(pipeline, "run_worker", late)
    stages = {s.name: s for group in pipeline.plan(place, pipeline.Options(), (9, 0)) for s in group}
    for name in ("compiled", "attention_peers"):
        found = stages[name].run(90)
        assert found.failures == ["wrong"]
        assert found.missing == [f"{name}: stopped after 90 s; the end of its output:"]
    assert len(stages["attention"].run(90).failures) == 2


def test_a_build_that_leaves_the_cuda_library_out_fails(place, monkeypatch, tmp_path):
    notes = "libevoworld_cuda: nvcc was not found\nevoworld._C: pybind11 is missing\n"
    target = place.package / "lib" / "left_out.txt"
    program(tmp_path, "cmake", f"import pathlib; pathlib.Path({str(target)!r}).write_text({notes!r})")
    program(tmp_path, "ninja", "")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(build.sys, "executable", str(tmp_path / "python"))
    found = build.build_libraries(place, (9, 0), 30)
    assert found.failures == ["libevoworld_cuda: nvcc was not found"]
    assert found.missing == ["evoworld._C: pybind11 is missing"]
    assert found.facts == {"built for": "sm_90a"}


def test_a_build_that_fails_shows_the_end_of_its_output(place, monkeypatch, tmp_path):
    program(tmp_path, "cmake", "print('error: no such file'); raise SystemExit(2)")
    program(tmp_path, "ninja", "")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(build.sys, "executable", str(tmp_path / "python"))
    (failure,) = build.build_libraries(place, (9, 0), 30).failures
    assert "exit code 2" in failure and "error: no such file" in failure


def test_the_ceilings_program_compiles_and_uses_what_it_measures(place):
    from benchmarks.gpu.machine_code import find_tool, read_kernels, vector_reductions

    if find_tool("nvcc") is None or find_tool("cuobjdump") is None:
        pytest.skip("nvcc or cuobjdump was not found")
    assert build.build_ceilings(place, (9, 0), 120).failures == []
    kernels = {f"{k.family}<{k.arguments}>": k for k in read_kernels(place.ceilings)}
    assert vector_reductions(kernels["add_rows_kernel<true>"]) and not vector_reductions(
        kernels["add_rows_kernel<false>"]
    )
    for name in ("copy_kernel<>", "read_kernel<>", "gather_rows_kernel<32>", "gather_rows_kernel<64>"):
        assert kernels[name].count("LDG.E.128") and not kernels[name].spills, name


def test_ceilings_are_read(place):
    program(place.work, "ceilings", "print('copy bytes/s\\t3e12'); print('L2 additions/s, four floats\\t2.5e11')")
    found = pipeline.measure(place, 30)
    assert found.rates == {"copy bytes/s": 3e12, "L2 additions/s, four floats": 2.5e11} and not found.failures
    program(place.work, "ceilings", "import sys; sys.exit('no device')")
    assert "no device" in pipeline.measure(place, 30).failures[0]


@pytest.mark.parametrize(
    ("text", "code", "failed", "result"),
    [
        ("========= ERROR SUMMARY: 0 errors", 0, False, "ERROR SUMMARY: 0 errors"),
        ("========= ERROR SUMMARY: 2 errors", 66, True, "ERROR SUMMARY: 2 errors"),
        ("========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)", 66, True, "RACECHECK SUMMARY: 1"),
        ("a crash", 1, True, "exit code 1"),
    ],
)
def test_the_verdict_of_a_sanitizer(place, monkeypatch, tmp_path, text, code, failed, result):
    tool = program(tmp_path, "compute-sanitizer", f"print({text!r}); raise SystemExit({code})")
    monkeypatch.setattr(sanitizer, "find_tool", lambda name: str(tool))
    found = sanitizer.sanitize(place, "memcheck", "cuda", 30)
    assert found.tables[0].rows[0][2].startswith(result)
    assert bool(found.failures) == failed and (not failed or text in found.failures[0])


def test_what_a_sanitizer_looks_at(place, monkeypatch, tmp_path):
    """Of Triton's kernels those without a CUDA twin; CUDA kernels by the namespace that is in all of their names."""
    tool = program(tmp_path, "compute-sanitizer", "import sys; print('= ERROR SUMMARY:', *sys.argv[1:])")
    monkeypatch.setattr(sanitizer, "find_tool", lambda name: str(tool))
    for backend, kernels, ops in (
        ("cuda", "kns=evoworld", "voxel_scatter volume_render"),
        ("triton", "kns=sphere_attention", "sphere_attention"),
    ):
        (row,) = sanitizer.sanitize(place, "memcheck", backend, 30).tables[0].rows
        assert row[:2] == ["memcheck", backend]
        assert f"--kernel-name {kernels} " in row[2] and row[2].endswith(f"--backend {backend} --ops {ops}")


def test_initcheck_is_about_our_kernels(place, monkeypatch, tmp_path):
    for backend, kernel, failed in (
        ("cuda", "at::native::fill_kernel", False),
        ("cuda", "evoworld::some_kernel", True),
        ("triton", "at::native::fill_kernel", False),
        ("triton", "sphere_attention_forward_kernel", True),
    ):
        text = f"========= Uninitialized read\n=========     at {kernel}(int)\n========= ERROR SUMMARY: 1 error"
        tool = program(tmp_path, "compute-sanitizer", f"print({text!r}); raise SystemExit(66)")
        monkeypatch.setattr(sanitizer, "find_tool", lambda name, tool=tool: str(tool))
        found = sanitizer.sanitize(place, "initcheck", backend, 30)
        assert bool(found.failures) == failed
        assert found.tables[0].rows == [["initcheck", backend, "ERROR SUMMARY: 1 error"]]


def test_a_sanitizer_that_is_not_there_or_refuses_the_card_is_said(place, monkeypatch, tmp_path):
    monkeypatch.setattr(sanitizer, "find_tool", lambda name: None)
    with pytest.raises(NotThere, match="compute-sanitizer was not found"):
        sanitizer.sanitize(place, "memcheck", "cuda", 30)
    tool = program(tmp_path, "compute-sanitizer", "print('========= Device not supported.'); raise SystemExit(1)")
    monkeypatch.setattr(sanitizer, "find_tool", lambda name: str(tool))
    with pytest.raises(NotThere, match="does not support this device"):
        sanitizer.sanitize(place, "memcheck", "cuda", 30)


def test_what_ncu_prints_is_read():
    names = ["ID", "Kernel Name", *profile.METRICS]
    units = ["", "", "us", *["%"] * (len(profile.METRICS) - 2), "register/thread"]
    percents = [str(number) for number in range(len(profile.METRICS) - 2)]
    kernel, triton = "voxel_scatter_forward_kernel<Half, 16, 8>", "sphere_attention_forward_kernel"
    values = [
        ["0", kernel, "31.5", *percents, "40"],
        ["1", kernel, "31.6", *percents, "40"],
        ["2", triton, "12.5", *percents, "168"],
        ["3", triton, "25.5", *percents, "255"],  # another width
    ]
    lines = [",".join(f'"{cell}"' for cell in row) for row in (names, units, *values)]
    rows = profile.read_csv("==PROF== Connected to process 1\n" + "\n".join(lines) + "\ndone\n")
    assert rows == [
        [kernel, "31.5 us", *percents, "40"],
        [triton, "12.5 us", *percents, "168"],
        [triton, "25.5 us", *percents, "255"],
    ]
    assert profile.read_csv("==ERROR== no permission") == []


TESTS = """
import os
import pytest

@pytest.mark.parametrize(("backend", "device"), [("cuda", "cuda"), ("triton", "cuda")])
@pytest.mark.parametrize("number", range(4))
def test_numbers(backend, device, number):
    assert number != 2 or backend != "cuda", "two is wrong"

@pytest.mark.parametrize("backend", ["cpu"])
def test_of_a_backend_that_is_missing(backend):
    pass

def test_of_no_backend():
    if os.environ.get("CRASH"):
        os._exit(7)
"""


def run_plugin(folder: Path, *arguments: str, **environment: str) -> Path:
    (folder / "test_some.py").write_text(TESTS)
    record = folder / "record.jsonl"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gpu.pytest_plugin", "--record", str(record)]
    command += ["-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={folder}", *arguments, str(folder)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True)
    return record


def test_the_faster_copy_is_the_ceiling(place, monkeypatch):
    rates = {"copy bytes/s": 2e12, "float32 FLOP/s": 5e13}
    monkeypatch.setattr(pipeline, "run_worker", lambda *_: Findings(rates=dict(rates)))
    ceilings = pipeline.plan(place, pipeline.Options(), (9, 0))[2][0]
    for printed, expected in ((3e12, 3e12), (1e12, 2e12)):
        program(place.work, "ceilings", f"print('copy bytes/s\\t{printed}')")
        assert ceilings.run(30).rates == {**rates, "copy bytes/s": expected}


def test_tests_are_counted_by_backend(tmp_path):
    found = op_tests.summarize([run_plugin(tmp_path)], ["cuda", "triton", "cpu"])
    counts = {row[0]: row[1:4] for row in found.tables[0].rows}
    assert counts == {
        "cuda": ["3", "1", "0"],
        "triton": ["4", "0", "0"],
        "cpu": ["1", "0", "0"],
        "others": ["1", "0", "0"],
    }
    failed, absent = found.failures
    assert "test_numbers[2-cuda-cuda]: AssertionError: two is wrong" in failed
    assert absent == "no test ran on backend cpu"


def test_tests_are_chosen_by_backend(tmp_path):
    counts = []
    for part in range(2):
        record = run_plugin(tmp_path, "--serve", "triton,others", "--part", f"{part}/2")
        found = op_tests.summarize([record], ["triton"])
        counts.append({row[0]: row[1] for row in found.tables[0].rows})
        assert not found.failures
    assert counts == [{"triton": "2", "others": "1"}, {"triton": "2"}]


def test_the_test_that_the_process_died_of_is_named(tmp_path, place, monkeypatch):
    record = run_plugin(tmp_path, "--serve", "others", CRASH="1")
    assert op_tests._last_begun(record).endswith("test_of_no_backend")

    def die(command, limit, log, *_):
        if log.stem != "tests_a_suite_1":
            return "exit code 5"  # no tests in this part
        record.rename(log.with_suffix(".jsonl"))
        return "exit code 7"

    monkeypatch.setattr(op_tests, "supervise", die)
    found = op_tests.run_tests(place, op_tests.Suite("a suite", ("cuda",), ("cuda",)), False, 60)
    assert found.failures[0] == "no test ran on backend cuda" and len(found.failures) == 2
    assert "pytest: exit code 7 in" in found.failures[-1] and "test_of_no_backend" in found.failures[-1]
