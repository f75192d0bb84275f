"""Runs parts of `make gpu`: python -m gpu_parts [PART ...] --out FOLDER [--quick]"""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

from gpu_parts.parts import PARTS, SECONDS, commands_of
from gpu_parts.running import PartRun


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(PARTS)}; all by default")
    parser.add_argument("--out", type=Path, required=True, help="folder of logs and results")
    parser.add_argument("--quick", action="store_true", help="a dry run, on a CPU too")
    arguments = parser.parse_args()
    parts = arguments.parts or list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]!r}; choose of {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, _interrupt)
    # Commands inherit that it is ignored, as in the background of a script, and would not stop.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    results = [_run(part, arguments.out, arguments.quick) for part in parts]
    return 0 if all(results) else 1


def _run(part: str, out: Path, quick: bool) -> bool:
    with PartRun(part, out, SECONDS) as run:
        commands = commands_of(part, os.environ.get("PYTHON") or sys.executable, quick)
        run.beside_each_other([command for command in commands if command.before_gpu])
        for command in commands:
            if not command.before_gpu:
                run.run(command)
    return run.passed


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
