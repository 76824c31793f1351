"""`evoworld evaluate`: everything that is claimed of a world model, measured on held-out procedural worlds."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

import evoworld
from evoworld.apps.generate import check_device
from evoworld.apps.media import Tile, contact_sheet
from evoworld.apps.progress import progress_bar
from evoworld.apps.render import check_output_folder
from evoworld.evaluation.world_claims import markdown, write
from evoworld.evaluation.world_model import CASES, FILL_ONLY, Measured, Plan, evaluate
from evoworld.world.evolve import World
from evoworld.world.model import WorldModel

QUICK = {
    "seeds": 1,
    "laps": 2,
    "long_walks": 1,
    "long_frames": 132,
    "holes": 8,
    "panoramas": 6,
    "text_walks": 300,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the command."""
    parser.add_argument("model", nargs="?", default="tiny", help="a name, a file, or none: fill-only; default tiny")
    parser.add_argument("--against", metavar="FILE", help="a second model, such as one trained without memory")
    parser.add_argument("--out", default="evaluation", metavar="DIR", help="folder for tables and pictures")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--seeds", type=int, metavar="N", help=f"of sampling; default {Plan.seeds}")
    parser.add_argument("--laps", type=int, metavar="N", help=f"closed walks; default {Plan.laps}")
    parser.add_argument("--holes", type=int, metavar="N", help=f"holes of each kind; default {Plan.holes}")
    parser.add_argument("--steps", type=int, metavar="N", help="of sampling; default: as generate does")
    parser.add_argument("--quick", action="store_true", help="less of everything: a first look, not the numbers")
    parser.add_argument("--cache", metavar="DIR", help="keep the true renderings in this folder")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    plan = plan_of(args)
    check_device(args.device)
    check_output_folder(args.out)
    contestants: dict[str, WorldModel | None] = {FILL_ONLY: None}
    for name in (args.model, args.against):
        if name not in (None, "none"):
            model = World.load(name, args.device).model.eval()
            contestants[_label(name, contestants)] = model
    start = time.perf_counter()
    measured, machine, command = Measured(), machine_facts(args.device), _command(args)

    def content():
        minutes = f"{(time.perf_counter() - start) / 60:.1f}"
        return measured, list(contestants), plan, machine | {"minutes": minutes}, command

    with ExitStack() as bars:

        def progress(case: str, total: int):
            bars.close()
            if measured.rows:  # a run that is stopped leaves what it has measured
                write(args.out, *content())
            return bars.enter_context(progress_bar(case.capitalize(), total))

        evaluate(contestants, plan, progress, measured)
    files = write(args.out, *content())
    if measured.pictures:
        files.append(write_sheet(Path(args.out) / "world_model.png", measured))
    print(markdown(*content()))
    print("Written: " + ", ".join(map(str, files)))
    return 0


def plan_of(args: argparse.Namespace) -> Plan:
    """How much the command is to measure."""
    given = {name: getattr(args, name) for name in ("seeds", "laps", "holes", "steps", "cache")}
    given = {name: value for name, value in given.items() if value is not None}
    plan = replace(Plan(), **{**(QUICK if args.quick else {}), **given})
    return plan if args.only is None else replace(plan, cases=tuple(args.only))


def machine_facts(device: str) -> dict[str, str]:
    """What the numbers were measured on."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return {
        "device": device,
        "name": name,
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "load": f"{os.getloadavg()[0]:.1f}",
        "torch": torch.__version__,
        "evoworld": evoworld.__version__,
    }


def write_sheet(path: Path, measured: Measured) -> Path:
    """The pictures of all cases, a row each: the truth, what was known, and what each contestant made of it."""
    rows = [
        [Tile(image.clamp(0, 1), f"{title}: {name}" if name == "true" else name) for name, image in pictures.items()]
        for title, pictures in measured.pictures
    ]
    contact_sheet(path, "EvoWorld · world model", "held-out procedural worlds", rows)
    return path


def _label(name: str, taken: dict) -> str:
    """A column's name for a model: its file's or, of a "model", the folder's; with a number where that is taken."""
    path = Path(name)
    label = path.stem if path.stem != "model" else path.absolute().parent.name or path.stem
    number, found = 1, label
    while found in {*taken, "truth"}:
        number += 1
        found = f"{label} {number}"
    return found


def _command(args: argparse.Namespace) -> str:
    words = ["evoworld", "evaluate", args.model]
    for name in ("against", "only", "seeds", "laps", "holes", "steps", "device"):
        value = getattr(args, name)
        if value not in (None, "cpu"):
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words + ["--quick"] * args.quick)
