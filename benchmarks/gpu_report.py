"""Build for this machine's GPU, test, measure and report, in one command: `python -m benchmarks.gpu_report --out DIR`.

Under 8 minutes; `--quick` looks for 2. Needs torch with CUDA and an NVIDIA GPU; nvcc, cmake and ninja for the CUDA
kernels. Nothing has to be installed: it works from a clone. Exit code 1: a test or check failed; 2: no GPU.
"""

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.gpu.build import Place
from benchmarks.gpu.pipeline import Options, plan, run
from benchmarks.gpu.results import GpuReport, markdown, write

ROOT = Path(__file__).resolve().parent.parent


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_report", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where gpu.json, gpu.md and gpu.log go")
    parser.add_argument("--quick", action="store_true", help="fewer sizes, runs and tests: a look, not a result")
    parser.add_argument("--profile", action="store_true", help="what ncu says of the kernels, too")
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "build" / "gpu_report",
        metavar="DIR",
        help="where things are built and kept",
    )
    parser.add_argument("--commit", default="", help="which commit this is, where the copy has no history")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    capability = (0, 0)
    if arguments.device == "cuda":
        capability, missing = find_gpu()
        if missing:
            print(f"benchmarks.gpu_report: {missing}", file=sys.stderr)
            return 2
    if arguments.commit:
        os.environ[machine.COMMIT_VARIABLE] = arguments.commit
    start = time.monotonic()
    options = Options(arguments.quick, arguments.profile, arguments.device)
    place = Place(ROOT, arguments.work.resolve())
    place.work.mkdir(parents=True, exist_ok=True)
    for old in [*place.work.glob("*.log"), *place.work.glob("*.json*")]:
        old.unlink()
    outcomes = run(plan(place, options, capability), options, lambda line: print(line, flush=True))
    command = f"python -m benchmarks.gpu_report {shlex.join(sys.argv[1:] if argv is None else argv)}"
    report = GpuReport(command, outcomes, time.monotonic() - start)
    written = write(report, arguments.out, sorted(place.work.glob("*.log")))
    print(markdown(report))
    for path in written:
        print(f"wrote {path}")
    return 1 if report.failed else 0


def find_gpu() -> tuple[tuple[int, int], str]:
    """The first card's compute capability, and what is missing in one line where there is none."""
    if not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        return (0, 0), f"needs torch with CUDA and an NVIDIA GPU; torch {torch.__version__} ({build}) sees none"
    return torch.cuda.get_device_capability(0), ""


if __name__ == "__main__":
    sys.exit(main())
