"""`make gpu` as far as a machine without a GPU can run it: with stand-ins for its tools."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ["tests", "head", "attention", "step"]
TESTS = ["test_one", "test_two"]
COMMANDS = {
    "tests": ["precompile", "build", *TESTS, "memcheck", "racecheck"],
    "head": ["precompile", "build", "linear_cross_entropy", "sweep_rows"],
    "attention": ["precompile", "build", "ring_attention", "sweep_attention", "decoding_kernels"],
    "step": [
        "precompile", "training_step", "generation", "dpo", "tokenizer_step", "tokenizer_encoding",
    ],
}  # fmt: skip
# Prints its arguments; the modules and scripts that it is given are stand-ins too.
PYTHON = f"""
case "$*" in
  *"-m gpu_parts.precompile"*) exit 0;;
  *"-m gpu_parts"*) exec {sys.executable} "$@";;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The driver in a folder of its own; every tool it calls prints its arguments and succeeds."""
    for folder in ("tests/gpu", "kernels"):
        (tmp_path / folder).mkdir(parents=True)
    for name in TESTS:
        (tmp_path / "tests" / "gpu" / f"{name}.py").touch()
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    for tool in ("make", "compute-sanitizer"):
        stand_in(tmp_path, tool, "exit 0")
    stand_in(tmp_path, "python", PYTHON)
    return tmp_path


def stand_in(checkout: Path, tool: str, body: str) -> None:
    path = checkout / "bin" / tool
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\necho {tool} "$@"\n{body}\n', encoding="utf-8")
    path.chmod(0o755)


def start(checkout: Path, **settings: str) -> subprocess.Popen[str]:
    folder = checkout / "bin"
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHON": str(folder / "python"),
        "OUT": str(checkout / "out"),
        **settings,
    }
    command = ["bash", checkout / "tools" / "gpu.sh"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment, stdout=pipe, stderr=pipe, text=True, encoding="utf-8"
    )


def run(checkout: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    process = start(checkout, **settings)
    out, error = process.communicate(timeout=60)
    return subprocess.CompletedProcess([], process.returncode, out, error)


def results(checkout: Path, part: str) -> dict[str, str]:
    text = (checkout / "out" / f"gpu_{part}.json").read_text(encoding="utf-8")
    return {row["name"]: row["result"] for row in json.loads(text)["commands"]}


def test_without_a_gpu_one_line_says_so(checkout: Path) -> None:
    stand_in(checkout, "python", "exit 1")

    done = run(checkout)

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "no GPU of capability 9.x" in done.stderr
    assert "===" not in done.stdout


@pytest.mark.parametrize("part", PARTS)
def test_a_part_compiles_first_and_then_runs_the_most_valuable(checkout: Path, part: str) -> None:
    done = run(checkout, PART=part)

    assert done.returncode == 0, done.stdout + done.stderr
    assert results(checkout, part) == dict.fromkeys(COMMANDS[part], "passed")
    begun = [line[4:] for line in done.stdout.splitlines() if line.startswith("=== ")]
    assert begun == COMMANDS[part]


def test_all_parts_together_write_eight_files(checkout: Path) -> None:
    done = run(checkout)

    assert done.returncode == 0, done.stdout + done.stderr
    files = sorted(path.name for path in (checkout / "out").iterdir())
    assert files == sorted(f"gpu_{part}.{kind}" for part in PARTS for kind in ("json", "log"))


def test_a_command_that_fails_does_not_hide_the_others(checkout: Path) -> None:
    stand_in(checkout, "compute-sanitizer", 'case "$*" in *memcheck*) exit 7;; esac')

    done = run(checkout, PART="tests")

    assert done.returncode == 1
    expected = dict.fromkeys(COMMANDS["tests"], "passed") | {"memcheck": "failed (7)"}
    assert results(checkout, "tests") == expected


MEASURES_FOR_EVER = f"""
case "$*" in *sweep_rows*) ;; *) exit 0;; esac
exec {sys.executable} -c '
import sys, time
open(sys.argv[-1], "w").write("{{\\"rows\\": [1]}}")
print("measured", flush=True)
time.sleep(60)
' "$@"
"""


def test_what_is_past_its_limit_says_where_it_was_and_keeps_its_rows(checkout: Path) -> None:
    stand_in(checkout, "python", PYTHON + MEASURES_FOR_EVER)
    parts = checkout / "tools" / "gpu_parts" / "parts.py"
    text = parts.read_text(encoding="utf-8")
    parts.write_text(text.replace('"sweep_rows": 90', '"sweep_rows": 1'), encoding="utf-8")

    done = run(checkout, PART="head")

    assert done.returncode == 1
    assert results(checkout, "head")["sweep_rows"].startswith("stopped after")
    log = (checkout / "out" / "gpu_head.log").read_text(encoding="utf-8")
    assert "KeyboardInterrupt" in log
    whole = json.loads((checkout / "out" / "gpu_head.json").read_text(encoding="utf-8"))
    assert whole["results"]["sweep_rows"] == {"rows": [1]}


def test_a_part_that_is_cut_short_keeps_what_it_has(checkout: Path) -> None:
    stand_in(checkout, "python", PYTHON + MEASURES_FOR_EVER)
    process = start(checkout, PART="head")
    path = checkout / "out" / "gpu_head.json"
    end = time.monotonic() + 30
    while time.monotonic() < end and not (path.exists() and '"rows"' in path.read_text("utf-8")):
        time.sleep(0.1)

    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)

    whole = json.loads(path.read_text(encoding="utf-8"))
    assert whole["results"]["sweep_rows"] == {"rows": [1]}
    assert whole["commands"][0] == {
        **whole["commands"][0],
        "name": "precompile",
        "result": "passed",
    }


def test_wheels_are_installed_without_a_network(checkout: Path) -> None:
    (checkout / "wheels").mkdir()
    (checkout / "wheels" / "a-1-py3-none-any.whl").touch()

    done = run(checkout, WHEELS=str(checkout / "wheels"), PART="head")

    assert "-m pip install --quiet --no-index --no-deps" in done.stdout
    assert "a-1-py3-none-any.whl" in done.stdout


def test_kernels_import_by_their_name_without_being_installed(checkout: Path) -> None:
    run(checkout, PART="head")

    link = checkout / "build" / "gpu" / "path" / "emu3_kernels"
    assert link.resolve() == checkout / "kernels"
