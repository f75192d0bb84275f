"""Shared by all benchmarks: arguments, timing, tables, JSON.

python benchmarks/NAME.py [--quick] --json FILE
"""

import argparse
import ctypes
import faulthandler
import json
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """One implementation on one case.

    Attributes:
        run: what is timed.
        figures: further columns, from what `run` returned and the least seconds it took. Where the
            work has an exact answer, `error` is the distance from it.
        tensors: torch does the work. It is timed by the GPU's own events where there is a GPU, and
            `peak_bytes` is torch's: on a GPU what its allocator held, else resident memory, both
            above what was held before.
    """

    case: str
    implementation: str
    run: Callable[[], Any]
    figures: Callable[[Any, float], dict[str, Any]] = field(default=lambda result, seconds: {})
    tensors: bool = False


def main(cases: Callable[[bool], Iterable[Case]], repeats: int = 5) -> None:
    """Run a benchmark from the command line.

    Args:
        cases: given whether to be quick.
        repeats: timed runs of each case, after one that is not timed; a quick look takes one.
    """
    write_rows(lambda quick: (measure(case, 1 if quick else repeats) for case in cases(quick)))


def write_rows(find: Callable[[bool], Iterable[dict[str, Any]]]) -> None:
    """Run a benchmark that measures its rows itself; `find` is given whether to be quick."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="small sizes, for a look or a test")
    parser.add_argument("--json", type=Path, help="write device, versions and rows to this file")
    arguments = parser.parse_args()
    # Where it was when its time was over: make gpu interrupts it.
    faulthandler.register(signal.SIGINT, chain=True)
    rows: list[dict[str, Any]] = []
    for row in find(arguments.quick):
        rows.append(row)
        print(_line(row), flush=True)
        if arguments.json:  # after every row: what was measured survives a benchmark cut short
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({**describe_machine(), "rows": rows}, indent=2)
            arguments.json.write_text(text + "\n", encoding="utf-8")


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """One row. Times are wall-clock milliseconds, `cpu_min_ms` those of this process alone.

    The least times are the ones to compare on a machine with other work. `peak_bytes` is what
    Python and numpy allocated at most, or torch, from a run that is not timed. A case that cannot
    run has a `reason` instead of figures.
    """
    row: dict[str, Any] = {"case": case.case, "implementation": case.implementation}
    try:
        peak = _peak_of_tensors(case.run) if case.tensors else _peak_of_python(case.run)
        walls, cpus = [], []
        for _ in range(repeats):
            cpu = time.process_time()
            wall, result = _timed(case)
            walls.append(wall)
            cpus.append(time.process_time() - cpu)
        figures = case.figures(result, min(walls if _on_gpu(case) else cpus))
    except Exception as error:
        return {**row, "reason": f"{type(error).__name__}: {error}"[:300]}
    return {
        **row,
        "median_ms": 1e3 * statistics.median(walls),
        "min_ms": 1e3 * min(walls),
        "max_ms": 1e3 * max(walls),
        "cpu_min_ms": 1e3 * min(cpus),
        "peak_bytes": peak,
        "error": None,
        **figures,
    }


def alternately(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, Any]]:
    """Times of several implementations by turns, after one turn that is not timed.

    What else the machine does then meets all of them. `cpu_median_ms` is the one to compare.
    """
    walls: dict[str, list[float]] = {name: [] for name in runs}
    cpus: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(1 + repeats):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if turn:
                walls[name].append(time.perf_counter() - wall)
                cpus[name].append(time.process_time() - cpu)
    return {
        name: {
            "median_ms": 1e3 * statistics.median(walls[name]),
            "min_ms": 1e3 * min(walls[name]),
            "max_ms": 1e3 * max(walls[name]),
            "cpu_min_ms": 1e3 * min(cpus[name]),
            "cpu_median_ms": 1e3 * statistics.median(cpus[name]),
            "error": None,
        }
        for name in runs
    }


def _on_gpu(case: Case) -> bool:
    return case.tensors and torch.cuda.is_available()


def _timed(case: Case) -> tuple[float, Any]:
    """Seconds of one run, and what it returned."""
    if _on_gpu(case):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        result = case.run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3, result
    start = time.perf_counter()
    result = case.run()
    return time.perf_counter() - start, result


def _peak_of_python(run: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _peak_of_tensors(run: Callable[[], Any]) -> int:
    """From the second of two runs: the first compiles what is compiled at first use."""
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what was freed but kept would hide what is taken
    # The peak of resident memory begins anew.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status says no {name}")


@cache
def describe_machine() -> dict[str, Any]:
    """Device, versions and commit."""
    names = ("torch", "triton", "megatron-core", "numpy")
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu(),
        "versions": {"python": platform.python_version(), **{n: _version(n) for n in names}},
        "commit": _git("rev-parse", "HEAD") + ("+" if _git("status", "--porcelain") else ""),
        "command": " ".join(["python", *sys.argv]),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    if shutil.which("git") is None:
        return ""
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, encoding="utf-8"
    )
    return done.stdout.strip()


def _line(row: dict[str, Any]) -> str:
    return "  ".join(f"{name}={_short(value)}" for name, value in row.items() if value is not None)


def _short(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1e4 else _long(value)


def _long(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)
