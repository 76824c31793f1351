"""The command line: lazy subcommands, one line for an error, the right exit code."""

import subprocess
import sys
import types

import pytest

import evoworld
from evoworld import cli


@pytest.fixture
def app(monkeypatch):
    """A subcommand ``play`` whose run() raises what the test puts into ``app.error``."""
    module = types.ModuleType("evoworld_play")
    module.error = None

    def run(args):
        if module.error:
            raise module.error
        print(f"played {args.tune}")

    module.add_arguments = lambda parser: parser.add_argument("tune")
    module.run = run
    monkeypatch.setitem(sys.modules, "evoworld_play", module)
    monkeypatch.setattr(cli, "COMMANDS", {"play": ("evoworld_play", "play a tune"), "other": ("no_such_module", "x")})
    return module


def test_runs_a_subcommand_and_imports_no_other(app, capsys):
    assert cli.main(["play", "waltz"]) == 0
    assert capsys.readouterr().out == "played waltz\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("voxel_size: expected > 0,\n got -1"), 2, "error: voxel_size: expected > 0, got -1"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), 1, "error: a.png: No such file or directory"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "error: not enough memory"),
        (ModuleNotFoundError("x", name="PIL.Image"), 2, "error: PIL.Image is missing; pip install 'evoworld[app]'"),
        (TypeError("oops"), 70, "internal error: TypeError: oops (--debug shows where)"),
    ],
)
def test_errors_are_one_line(app, capsys, error, code, message):
    app.error = error
    assert cli.main(["play", "waltz"]) == code
    assert capsys.readouterr().err == f"evoworld: {message}\n"


@pytest.mark.parametrize("argv", [["--debug", "play", "waltz"], ["play", "waltz", "--debug"]])
def test_debug_shows_the_traceback(app, capsys, argv):
    app.error = ValueError("wrong")
    assert cli.main(argv) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["dance"], ["play"], ["play", "waltz", "--loud"]])
def test_bad_usage_exits_with_2(app, capsys, argv):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert "usage: evoworld" in capsys.readouterr().err


def test_help_lists_the_commands_without_loading_torch():
    code = "import sys; from evoworld import cli\ntry: cli.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(command in result.stdout for command in cli.COMMANDS)


def test_version_and_info_of_the_installed_command():
    command = [sys.executable, "-m", "evoworld.cli"]
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
    assert version == f"evoworld {evoworld.__version__}\n"
    report = subprocess.run([*command, "info"], capture_output=True, text=True, check=True).stdout
    assert report.startswith("evoworld ") and "\nops\n" in report


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m evoworld.cli info | head -n 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.stderr == "" and result.stdout.startswith("evoworld ")
