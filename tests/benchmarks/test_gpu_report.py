"""The GPU report as a whole, without a GPU: on the CPU with tiny sizes, and where nothing works."""

import json

import pytest
import torch

from benchmarks import gpu_report
from benchmarks.gpu import pipeline, results
from benchmarks.gpu.findings import Findings, Table
from benchmarks.gpu.stages import Outcome

NEAR = "cpu, 30 degrees"


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """The whole report on the CPU, on tiny sizes: its exit code and its folder."""
    folder = tmp_path_factory.mktemp("dry_run")
    arguments = ["--out", str(folder / "out"), "--work", str(folder / "work"), "--device", "cpu", "--commit", "abc"]
    return gpu_report.main(arguments), folder / "out"


def test_a_dry_run_finds_nothing_wrong(dry_run):
    code, folder = dry_run
    document = json.loads((folder / "gpu.json").read_text())
    assert [(s["name"], s["status"]) for s in document["stages"]] == [
        (name, "passed") for name in ("machine", "ceilings", *pipeline.TIMES)
    ], document["stages"]
    assert code == 0 and not document["failed"]
    assert [row for row in document["rows"] if row["refused"]] == []
    assert all(row["median"] > 0 for row in document["rows"])


def test_a_dry_run_times_every_op_both_ways_against_its_floor(dry_run):
    document = json.loads((dry_run[1] / "gpu.json").read_text())
    rows = {(row["case"], row["contestant"]): row for row in document["rows"]}
    for size in ("512x1024, C = 16 float16", "512x1024, C = 32 float32", "512x1024, C = 4 float32"):
        forward = rows[f"voxel_scatter {size}, forward", "cpu"]
        assert forward["bytes"] > 0 and forward["flops"] > 0
        assert rows[f"voxel_scatter {size}, forward", "index_add_"]["bytes"] == forward["bytes"]
        assert rows[f"voxel_scatter {size}, backward", "cpu, backward, all gradients"]["bytes"] > forward["bytes"]
        forward = rows[f"volume_render {size}, forward", "cpu"]
        assert rows[f"volume_render {size}, backward", "cpu, backward, rays too"]["bytes"] > forward["bytes"]
    # 512 rays of 16 halves, a depth, an origin and a direction; rows of 17 floats.
    lattice_points = (rows["voxel_scatter 512x1024, C = 16 float16, forward", "cpu"]["bytes"] - 512 * 60) / 68
    assert lattice_points == int(lattice_points) and 0 < lattice_points < 8 * 512 * 64
    assert ("voxel_scatter 512x1024, C = 16 float16, forward", "cpu, deterministic") in rows
    assert ("Memory 512x1024, C = 16", "observe, wall") in rows
    assert any(case.startswith("SparseGrid") for case, _ in rows)
    for width in (64, 128):
        case = f"sphere_attention 16 x 2048, N = 16, D = {width} bfloat16"
        forward, backward = rows[f"{case}, forward", "cpu"], rows[f"{case}, backward", "cpu"]
        assert forward["flops"] == 4 * 2 * 2 * 32 * 32 * width  # of 2 x 2 x 32 tokens: no columns of the bias count
        assert backward["flops"] == 2.5 * forward["flops"] and backward["bytes"] > forward["bytes"]
        for peer in ("SDPA", "SDPA, folded", "SDPA, dense bias", "cpu, no bias"):
            assert rows[f"{case}, forward", peer]["flops"] == forward["flops"]
        assert rows[f"{case}, backward", "SDPA, folded"]["peak"] == document["rates"]["bfloat16 FLOP/s"]
    whole, near = (rows["sphere_attention 1 x 32768, N = 16, D = 64 bfloat16, forward", c] for c in ("cpu", NEAR))
    assert 0 < near["flops"] < whole["flops"] / 4
    assert any(contestant == "torch.compile" for _, contestant in rows)


def test_a_dry_run_holds_the_targets_of_the_project(dry_run):
    document = json.loads((dry_run[1] / "gpu.json").read_text())
    targets = {target["claim"]: target for target in document["targets"]}
    limits = {
        "voxel_scatter 512x1024, C = 16 float16, forward by cpu / floor": 2.0,
        "voxel_scatter 512x1024, C = 32 float32, forward by cpu / floor": 2.0,
        "voxel_scatter 512x1024, C = 16 float16, backward, all gradients by cpu": 0.05,
        "volume_render 512x1024, C = 16 float16, forward by cpu": 0.3,
        "volume_render 512x1024, C = 16 float16, backward, features and density by cpu": 2.0,
        "Memory 512x1024, C = 16: observe": 0.5,
        "Memory 512x1024, C = 16: query": 0.5,
        "voxel_scatter 512x1024, C = 16 float16, forward (torch.compile): torch.compile of the reference / cpu": 10.0,
        **{
            f"sphere_attention {length}, N = 16, D = {width} bfloat16, {claim}": limit
            for length in ("1 x 32768", "16 x 2048")
            for width, limits in ((64, (400.0, 280.0, 1.12)), (128, (450.0, 340.0, 1.06)))
            for claim, limit in zip(
                (
                    "forward by cpu",
                    "backward by cpu",
                    "forward by cpu: with the bias / without",
                    "forward: SDPA without bias / cpu",
                ),
                (*limits, 0.9),
                strict=True,
            )
        },
        "sphere_attention 1 x 32768, N = 16, D = 64 bfloat16, forward (FlexAttention): FlexAttention / cpu": 1.3,
        "sphere_attention 180x360, one head of 64 bfloat16, forward: SDPA, log weights as a mask / cpu": 30.0,
    }
    assert {claim: targets[claim]["limit"] for claim in limits} == limits
    assert all(targets[claim]["verdict"] in ("met", "missed") for claim in limits)
    memory = [target for claim, target in targets.items() if "peak memory" in claim]
    assert len(memory) == 4 and all(target["verdict"] == "not measured" for target in memory)


def test_a_dry_run_can_be_read(dry_run):
    folder = dry_run[1]
    assert sorted(path.name for path in folder.iterdir()) == ["gpu.json", "gpu.log", "gpu.md"]
    text = (folder / "gpu.md").read_text()
    titles = ("Stages", "Against the targets", "Times", "Ceilings", "sphere_attention, TFLOP/s", "Notes", "Machine")
    for title in titles:
        assert f"\n## {title}\n" in text
    assert "## Failures" not in text
    document = json.loads((folder / "gpu.json").read_text())
    assert {"processor", "torch", "date", "commit"} <= set(document["facts"])
    assert document["command"].startswith("python -m benchmarks.gpu_report --out ")
    assert document["rates"]["copy bytes/s"] > 1e8


def test_a_failed_run_says_so(tmp_path):
    outcomes = [
        Outcome(
            "build", "passed", 3.0, findings=Findings(facts={"GPU": "a card"}, tables=[Table("T", ["a"], [["1"]])])
        ),
        Outcome("tests", "failed", 1.0, "one | is wrong\nin detail", Findings(tables=[Table("T", ["a"], [["2"]])])),
    ]
    report = results.GpuReport("the command", outcomes, 4.0)
    (tmp_path / "tests.log").write_text("all of it")
    written = results.write(report, tmp_path / "out", [tmp_path / "tests.log"])
    text = written[0].read_text()
    assert report.failed and text.startswith("# a card\n")
    assert "| tests | failed | 1       | one / is wrong |" in text
    assert text.count("## T\n") == 1 and "\n| 1 |\n| 2 |\n" in text
    assert "```\none | is wrong\nin detail\n```" in text
    document = json.loads(written[1].read_text())
    assert document["failed"] and document["stages"][1]["error"] == "one | is wrong\nin detail"
    assert written[2].read_text() == "==== tests\nall of it\n"
    assert not results.GpuReport("", outcomes[:1], 1.0).failed


@pytest.mark.parametrize(("error", "code"), [("", 0), ("a test failed", 1)])
def test_the_exit_code_tells_whether_checks_failed(monkeypatch, tmp_path, error, code):
    status = "failed" if error else "passed"
    monkeypatch.setattr(gpu_report, "run", lambda *_: [Outcome("tests", status, 1.0, error)])
    arguments = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--device", "cpu"]
    assert gpu_report.main(arguments) == code


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_needs(tmp_path, capsys):
    assert gpu_report.main(["--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs torch with CUDA and an NVIDIA GPU" in line and torch.__version__ in line
    assert not (tmp_path / "out").exists()


def test_on_a_gpu_machine_where_nothing_works_everything_is_reported(monkeypatch, tmp_path):
    def broken(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(gpu_report, "find_gpu", lambda: ((9, 0), ""))
    monkeypatch.setattr(pipeline.build, "build_libraries", broken)
    monkeypatch.setattr(pipeline.build, "build_ceilings", broken)
    monkeypatch.setattr(pipeline.op_tests, "run_tests", broken)
    monkeypatch.setattr(pipeline, "run_worker", lambda module, *_: Findings(failures=[f"{module}: no device"]))
    code = gpu_report.main(["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--quick"])
    document = json.loads((tmp_path / "out" / "gpu.json").read_text())
    found = {stage["name"]: (stage["status"], stage["error"]) for stage in document["stages"]}
    assert code == 1 and document["failed"]
    assert found["build"] == found["tests of the Triton kernels"] == ("failed", "RuntimeError: no compiler")
    assert found["tests of the CUDA kernels"] == ("skipped", "needs build")
    assert found["compute-sanitizer memcheck"] == ("skipped", "needs build")
    assert found["scatter"] == ("failed", "benchmarks.gpu.scatter: no device")
    assert found["ceilings"][0] == "failed" and "flops: no device" in found["ceilings"][1]
