"""What every benchmark shares: how it is called, timed, shown and written down.

python benchmarks/NAME.py [--quick] --json FILE
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """One implementation on one case.

    Attributes:
        run: what is timed.
        figures: further columns, from what `run` returned and the least seconds it took.
    """

    case: str
    implementation: str
    run: Callable[[], Any]
    figures: Callable[[Any, float], dict[str, Any]] = field(default=lambda result, seconds: {})


def main(cases: Callable[[bool], Iterable[Case]], repeats: int = 5) -> None:
    """Run a benchmark from the command line.

    Args:
        cases: given whether to be quick.
        repeats: timed runs of each case, after one that is not timed.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="small sizes, for a look or a test")
    parser.add_argument("--json", type=Path, help="write device, versions and rows to this file")
    arguments = parser.parse_args()
    rows = []
    for case in cases(arguments.quick):
        rows.append(measure(case, repeats))
        print(_line(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({**describe_machine(), "rows": rows}, indent=2) + "\n")


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """One row. Times are wall-clock milliseconds, `cpu_min_ms` those of this process alone.

    The least times are the ones to compare on a machine with other work. `peak_bytes` is what
    Python and numpy allocated at most, from a run that is not timed.
    """
    row: dict[str, Any] = {"case": case.case, "implementation": case.implementation}
    try:
        tracemalloc.start()
        case.run()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        walls, cpus = [], []
        for _ in range(repeats):
            wall, cpu = time.perf_counter(), time.process_time()
            result = case.run()
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    except Exception as error:
        tracemalloc.stop()
        return {**row, "error": f"{type(error).__name__}: {error}"}
    return {
        **row,
        "median_ms": 1e3 * statistics.median(walls),
        "min_ms": 1e3 * min(walls),
        "max_ms": 1e3 * max(walls),
        "cpu_min_ms": 1e3 * min(cpus),
        "peak_bytes": peak,
        "error": None,
        **case.figures(result, min(cpus)),
    }


def describe_machine() -> dict[str, Any]:
    """Device, versions and commit."""
    names = ("torch", "megatron-core", "numpy")
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu(),
        "versions": {"python": platform.python_version(), **{n: version(n) for n in names}},
        "commit": _git("rev-parse", "HEAD") + ("+" if _git("status", "--porcelain") else ""),
        "command": " ".join(["python", *sys.argv]),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    return done.stdout.strip()


def _line(row: dict[str, Any]) -> str:
    return "  ".join(f"{name}={_short(value)}" for name, value in row.items() if value is not None)


def _short(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1e4 else _long(value)


def _long(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)
