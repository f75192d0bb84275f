"""`make gpu` as far as a machine without a GPU can run it: with stand-ins for its tools."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "gpu.sh"
TESTS = ["test_one", "test_two"]
SANITIZERS = ["memcheck", "racecheck"]
TIMINGS = ["dpo", "decoding_kernels", "tokenizer_encoding", "tokenizer_step", "generation"]
TIMINGS += ["linear_cross_entropy", "ring_attention"]
PARTS = ["build", *TESTS, *SANITIZERS, *TIMINGS]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The script in a folder of its own; every tool it calls prints its arguments and succeeds."""
    for folder in ("tools", "tests/gpu"):
        (tmp_path / folder).mkdir(parents=True)
    for name in TESTS:
        (tmp_path / "tests" / "gpu" / f"{name}.py").touch()
    shutil.copy(SCRIPT, tmp_path / "tools")
    for tool in ("python", "make", "compute-sanitizer"):
        stand_in(tmp_path, tool, "exit 0")
    return tmp_path


def stand_in(checkout: Path, tool: str, body: str) -> None:
    path = checkout / "bin" / tool
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\necho {tool} "$@"\n{body}\n', encoding="utf-8")
    path.chmod(0o755)


def run(checkout: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    folder = checkout / "bin"
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHON": str(folder / "python"),
        "OUT": str(checkout / "out"),
        **settings,
    }
    command = ["bash", checkout / "tools" / "gpu.sh"]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, encoding="utf-8"
    )


def test_without_a_gpu_one_line_says_so(checkout: Path) -> None:
    stand_in(checkout, "python", "exit 1")

    done = run(checkout)

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "no GPU of capability 9.x" in done.stderr
    assert "===" not in done.stdout


def test_correctness_comes_before_timings(checkout: Path) -> None:
    done = run(checkout)

    assert done.returncode == 0, done.stderr
    assert [line[4:] for line in done.stdout.splitlines() if line.startswith("===")] == PARTS
    assert "make csrc" in (checkout / "out" / "build.log").read_text(encoding="utf-8")
    command = "-m pytest -q -m gpu tests/gpu/test_two.py"
    assert command in (checkout / "out" / "test_two.log").read_text(encoding="utf-8")
    assert "--tool racecheck" in (checkout / "out" / "racecheck.log").read_text(encoding="utf-8")
    assert "linear_cross_entropy_gpu.json" in done.stdout
    assert "dpo_gpu.json" in done.stdout


def test_a_part_that_fails_does_not_hide_the_others(checkout: Path) -> None:
    stand_in(checkout, "compute-sanitizer", 'case "$*" in *memcheck*) exit 7;; esac')

    done = run(checkout)

    assert done.returncode == 1
    results = [line.split()[:2] for line in done.stdout.split("\n\n")[-1].splitlines()]
    expected = [[part, "failed" if part == "memcheck" else "passed"] for part in PARTS]
    assert results == expected


def test_wheels_are_installed_without_a_network(checkout: Path) -> None:
    (checkout / "wheels").mkdir()
    (checkout / "wheels" / "a-1-py3-none-any.whl").touch()

    done = run(checkout, WHEELS=str(checkout / "wheels"))

    assert "-m pip install --quiet --no-index --no-deps" in done.stdout
    assert "a-1-py3-none-any.whl" in done.stdout


def test_kernels_import_by_their_name_without_being_installed(checkout: Path) -> None:
    (checkout / "kernels").mkdir()

    run(checkout)

    link = checkout / "build" / "gpu" / "path" / "emu3_kernels"
    assert link.resolve() == checkout / "kernels"
