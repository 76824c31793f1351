"""Run every benchmark, print the tables, and write them: `python -m benchmarks.run [--quick] [--captures DIR]`."""

import argparse
import sys
from pathlib import Path

import torch

from benchmarks import (
    attention,
    bench_memory,
    bench_sphere_attention,
    bench_threads,
    bench_volume_render,
    bench_voxel_scatter,
)
from benchmarks.inputs import find_captures, remember
from benchmarks.machine import describe, measure_ceilings
from benchmarks.report import Report, markdown, write

RESULTS = Path(__file__).resolve().parent / "results"
PARTS = ("scatter", "render", "attention", "threads", "memory", "quality")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, small sizes: a look, not a result")
    parser.add_argument(
        "--captures", type=Path, metavar="DIR", help="a capture or a folder of captures (default: the one that ships)"
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument("--repeats", type=int, help="timed runs of each contestant")
    parser.add_argument("--fit", type=int, metavar="STEPS", help="steps of Memory.fit before quality is measured again")
    parser.add_argument(
        "--out", type=Path, metavar="NAME", help=f"write NAME.md and NAME.json (default: in {RESULTS.name}/)"
    )
    arguments = parser.parse_args(argv)
    try:
        report = run(arguments)
    except ValueError as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 2
    print(markdown(report))
    out = arguments.out or RESULTS / ("quick" if arguments.quick else "cpu")
    for path in write(report, out):
        print(f"wrote {path}")
    return 0


def run(arguments: argparse.Namespace) -> Report:
    """Measure what was asked for; speed on the first capture, quality on all of them."""
    quick = arguments.quick
    repeats = arguments.repeats or (5 if quick else 15)
    fit_steps = (50 if quick else 400) if arguments.fit is None else arguments.fit
    captures = find_captures(arguments.captures)
    report = Report(describe(), measure_ceilings(0.25 if quick else 1.0), [capture.name for capture in captures])
    held_out = f"index % {bench_memory.HOLD_OUT} == {bench_memory.HOLD_OUT // 2}"
    report.notes += [
        f"Speed on {captures[0].name}: median of {repeats} interleaved runs with {torch.get_num_threads()} threads, "
        "inputs rotated; a result is timed only after it agreed with the reference.",
        "512x1024 panoramas are 256x512 frames with each pixel repeated 2 x 2 along its own new ray; 16 channels are "
        "the colours, repeated. Each frame of voxel_scatter has the grid of its own points at 5 cm.",
        "sphere_attention: tokens of a panorama with area weights, and a von Mises-Fisher bias of another width for "
        f"each head (kappa from {attention.LEAST_KAPPA:g} to {attention.MOST_KAPPA:g}); a contestant that has run for "
        f"{bench_sphere_attention.SECONDS_PER_CONTESTANT:g} s is out.",
        f"Quality: frames with {held_out} are held out, the others observed. Reprojection: nearest, z-buffered, holes "
        "black; a pixel without depth counts as an AbsRel of 1.",
    ]

    def progress(what: str) -> None:
        print(f"... {what}", file=sys.stderr, flush=True)

    def add(found) -> None:
        report.rows += found[0]
        report.targets += found[1]

    parts = arguments.only
    if "scatter" in parts:
        progress("voxel_scatter")
        heights = bench_voxel_scatter.HEIGHTS[: 1 if quick else None]
        add(bench_voxel_scatter.run(captures[0], repeats, report.missing, heights))
    if "render" in parts or "threads" in parts:
        progress("volume_render")
        world = remember(captures[0], 8 if quick else None)
        if "render" in parts:
            add(bench_volume_render.run(world, repeats, report.missing))
        if "threads" in parts:
            progress("threads on a busy machine")
            add(bench_threads.run(world, repeats))
    if "attention" in parts:
        progress("sphere_attention")
        add(bench_sphere_attention.run(repeats, report.missing, quick))
    if "memory" in parts:
        progress("observe and query")
        add(bench_memory.run_speed(captures[0], 4 if quick else 16))
    if "quality" in parts:
        progress(f"quality on {len(captures)} captures")
        table, targets = bench_memory.run_quality(captures, fit_steps)
        report.quality += table
        report.targets += targets
    return report


if __name__ == "__main__":
    sys.exit(main())
