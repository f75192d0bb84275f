"""Parts of `make gpu` as a dry run on a CPU: what breaks them is seen before a GPU is at hand."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from support.processes import run_processes

ROOT = Path(__file__).parents[2]
# Those whose kernels must be imported for the interpreter run in the slow test alone.
LISTED = ["linear_cross_entropy", "ring_attention", "decoding_kernels", "training_step"]
LISTED += ["tokenizer_encoding"]


def cases_of(name: str) -> list[tuple[str, str]]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    return [(case.case, case.implementation) for case in import_module(name).cases(True)]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    folders = [str(ROOT / "tools"), str(ROOT / "benchmarks"), *filter(None, sys.path)]
    environment |= {"PYTHONPATH": ":".join(folders)}
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=ROOT,
    )


def test_every_launch_that_is_compiled_beforehand_reaches_its_kernels() -> None:
    pytest.importorskip("triton")

    done = python("-m", "gpu_parts.precompile", "tests", "head", "attention", "step", "--quick")

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if "Error" in line] == []
    names = {name for line in lines for name in line.replace(",", " ").split() if "_kernel" in name}
    expected = {"forward_kernel", "dq_kernel", "dkdv_kernel", "statistics_kernel"}
    expected |= {"gradient_kernel", "parts_kernel", "merge_kernel", "search_kernel"}
    assert expected <= names


def test_a_sweep_has_about_twelve_launches_a_kernel_without_repeats() -> None:
    sweeps = import_module("sweeps")

    for launches in (*sweeps.ATTENTION.values(), sweeps.ROWS):
        assert len(launches) == len(set(launches)) == 12


@pytest.mark.parametrize("name", LISTED)
def test_a_benchmark_finds_its_cases(name: str) -> None:
    (cases,) = run_processes(cases_of, 1, name)  # some start Megatron's groups

    assert len(set(cases)) == len(cases) > 0


@pytest.mark.slow
@pytest.mark.parametrize("part", ["tests", "head", "attention", "step"])
def test_a_part_runs_on_a_cpu(part: str, tmp_path: Path) -> None:
    done = python("-m", "gpu_parts", part, "--quick", "--out", str(tmp_path))

    assert done.returncode == 0, done.stdout
    whole = json.loads((tmp_path / f"gpu_{part}.json").read_text(encoding="utf-8"))
    assert len(whole["results"]) == len(whole["commands"]) - 1  # all but the compiling
    reasons = [
        row["reason"] for one in whole["results"].values() for row in one["rows"] if "reason" in row
    ]
    assert [
        reason for reason in reasons if "No module named" not in reason and part != "tests"
    ] == []
