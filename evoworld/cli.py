"""The command ``evoworld``: finds the subcommand, runs it, and turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

# Threads of torch that wait should sleep, not spin: on a busy machine two spinning ones are slower than one. Read when
# torch is loaded, which nothing above does.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from . import __version__
from .info import extra_of

# Subcommand -> its module (add_arguments(parser) and run(args), imported only when it is the one) and one line of help.
COMMANDS = {
    "info": ("evoworld.info", "versions, libraries, which backend serves each op, what is missing"),
    "reconstruct": ("evoworld.apps.reconstruct", "turn a capture into a world file"),
    "render": ("evoworld.apps.render", "walk through a world: stills, depth, 360° video"),
    "generate": ("evoworld.apps.generate", "make a world from a sentence or a picture, and walk through it"),
    "train": ("evoworld.apps.train", "train a world model on procedural worlds and captures"),
    "evaluate": ("evoworld.apps.evaluate", "measure how good a world model is, beside filling without a network"),
    "demo": ("evoworld.apps.demo", "reconstruct the capture that ships with the project and walk through it"),
}

EXIT_IO, EXIT_USAGE, EXIT_INTERNAL, EXIT_INTERRUPTED = 1, 2, 70, 130


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; of the subcommands only the one that ``argv`` names gets its arguments, so no other is imported."""
    parser = argparse.ArgumentParser(
        prog="evoworld", description="360° worlds you can generate, remember and walk through."
    )
    parser.add_argument("--version", action="version", version=f"evoworld {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wanted = next((word for word in argv if not word.startswith("-")), None)
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary.capitalize() + ".")
        command.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )
        if name == wanted:
            app = importlib.import_module(module)
            app.add_arguments(command)
            command.set_defaults(run=app.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0, 2 for bad input, 1 when reading or writing failed."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = build_parser(argv).parse_args(argv)
        code = args.run(args)
        sys.stdout.flush()
        return code or 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left: nothing to complain about
        return EXIT_IO
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in argv:
            traceback.print_exc()
        message, code = explain(error)
        print(f"evoworld: {message}", file=sys.stderr)
        return code


def explain(error: BaseException) -> tuple[str, int]:
    """One line for an error, and the exit code.

    Example:
        >>> explain(ValueError("voxel_size: expected a positive number, got 0"))
        ('error: voxel_size: expected a positive number, got 0', 2)
    """
    text = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", EXIT_INTERRUPTED
    if isinstance(error, ModuleNotFoundError) and error.name and extra_of(error.name):
        return f"error: {error.name} is missing; pip install 'evoworld[{extra_of(error.name)}]'", EXIT_USAGE
    if isinstance(error, OSError):
        if error.filename is not None and error.strerror:
            text = f"{error.filename}: {error.strerror}"
        return f"error: {text}", EXIT_IO
    if isinstance(error, MemoryError):
        return f"error: {text or 'not enough memory'}", EXIT_IO
    if isinstance(error, ValueError):
        return f"error: {text}", EXIT_USAGE
    return f"internal error: {type(error).__name__}: {text} (--debug shows where)", EXIT_INTERNAL


if __name__ == "__main__":
    sys.exit(main())
