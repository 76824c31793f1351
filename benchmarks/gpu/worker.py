"""The process of a timing stage: `python -m benchmarks.gpu.worker MODULE --save FILE --device cuda`."""

import argparse
import importlib
import json
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.worker", description=__doc__)
    parser.add_argument("module", help="a module with run(context)")
    parser.add_argument("--save", type=Path, required=True, metavar="FILE")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rates", type=json.loads, default={}, metavar="JSON", help="measured ceilings")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args(argv)
    from benchmarks.gpu.context import Context
    from benchmarks.gpu.device import open_device

    context = Context(
        open_device(arguments.device), arguments.quick, arguments.tiny, arguments.rates, save_to=arguments.save
    )
    importlib.import_module(arguments.module).run(context)
    context.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
