"""`evoworld train`: a world model from procedural worlds, captures and photos."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import contextmanager

import tyro
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from evoworld.training import CONFIGS, TrainConfig, read_config
from evoworld.training.config import STAGES
from evoworld.training.costs import count_costs
from evoworld.training.distributed import is_first, process_count
from evoworld.training.run_folder import MODEL
from evoworld.training.trainer import Progress as Step
from evoworld.training.trainer import train

LINE_SECONDS = 30.0  # between lines where there is no terminal to draw a bar on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the command: all of them are the fields of `TrainConfig`, which tyro reads."""
    parser.prefix_chars = "\0"  # so that argparse takes no option for its own
    parser.add_argument("arguments", nargs="*")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    config = parse(args.arguments)
    quiet = not is_first()
    if not quiet:
        print_plan(config)
    with watching(quiet) as watcher:
        finished = train(config, watcher)
    if finished and not quiet:
        print(f"Model: {config.out}/{MODEL}" if config.lasts("flow") else f"Checkpoint: {config.out}")
    return 0


def parse(arguments: Sequence[str]) -> TrainConfig:
    """The configuration that a command line asks for: `--config` a name or a file, and fields that differ from it.

    Example:
        >>> config = parse(["--config", "base", "--flow.batch", "8", "--data.captures", "a", "b"])
        >>> config.flow.batch, config.data.captures, config.sharding
        (8, ('a', 'b'), 'ddp')
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", default="tiny")
    chosen, rest = first.parse_known_args([word for word in arguments if word != "--debug"])
    description = (
        f"Train a world model. --config {{{','.join(CONFIGS)}}} or a YAML file chooses the settings; "
        "each can be changed:"
    )
    return tyro.cli(
        TrainConfig,
        args=rest,
        default=read_config(chosen.config),
        prog="evoworld train",
        description=description,
        config=(tyro.conf.AvoidSubcommands,),
    )


def print_plan(config: TrainConfig) -> None:
    """Prints what will be trained, and what it takes."""
    costs = count_costs(config.model, config.checkpointing)
    model = config.model
    table = Table(title=f"{model.num_frames} frames of {model.height} x {2 * model.height}", box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("", justify="right")
    stages = {name: getattr(config, name) for name in ("autoencoder", "flow") if config.lasts(name)}
    at_once = {name: x.at_once(process_count()) for name, x in stages.items()}
    for row in costs.table(at_once):
        table.add_row(*row)
    table.add_section()
    for name in STAGES:
        if config.lasts(name):
            stage = getattr(config, name)
            extent = f"{config.minutes_of(name):.1f} minutes" if config.minutes else f"{stage.steps:,} steps"
            table.add_row(f"stage {name}", f"{extent}, {stage.batch} segments a step")
    Console().print(table)


class Watcher:
    """Shows a run: a bar on a terminal, lines elsewhere; nothing if quiet."""

    def __init__(self, bar: Progress, console: Console, quiet: bool):
        self._bar, self._console, self._quiet = bar, console, quiet
        self._tasks: dict[str, TaskID] = {}
        self._said = time.monotonic()

    def progress(self, step: Step) -> None:
        """Shows where the stage is."""
        if self._quiet:
            return
        facts = {"loss": f"{step.loss:.4f}", "pace": pace(step.rate), "left": clock(step.seconds_left)}
        if step.stage not in self._tasks:
            self._tasks[step.stage] = self._bar.add_task(step.stage, total=1.0, step=0, **facts)
        self._bar.update(self._tasks[step.stage], completed=step.fraction, step=step.step, **facts)
        if not self._console.is_terminal and time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            self.note(f"{step.stage}: step {step.step}, loss {facts['loss']}, {facts['pace']}, {facts['left']} left")

    def note(self, text: str) -> None:
        """Says something, above the bar if there is one."""
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False)


@contextmanager
def watching(quiet: bool = False):
    """A `Watcher` on stderr."""
    console = Console(stderr=True, soft_wrap=True)
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TextColumn("step {task.fields[step]} · loss {task.fields[loss]} · {task.fields[pace]} ·"),
        TimeElapsedColumn(),
        TextColumn("gone, {task.fields[left]} left"),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        yield Watcher(bar, console, quiet)


def pace(rate: float) -> str:
    """Steps a second, or seconds a step where they are slow.

    >>> pace(4.0), pace(0.25)
    ('4.00 steps/s', '4.00 s a step')
    """
    return f"{rate:.2f} steps/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.2f} s a step"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock(3725), clock(float("inf"))
    ('1:02:05', '-:--')
    """
    if seconds == float("inf"):
        return "-:--"
    whole = int(seconds)
    hours = f"{whole // 3600}:" if whole >= 3600 else ""
    return f"{hours}{whole // 60 % 60:02d}:{whole % 60:02d}" if hours else f"{whole // 60}:{whole % 60:02d}"
