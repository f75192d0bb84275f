"""tools/install.sh on machines that lack this or that, played by scripts on its PATH."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools/install.sh"
TOOLS = ["bash", "env", "cat", "cp", "grep", "id", "mkdir", "tr"]

# Answers `-c` as a Python of that version would, makes a virtual environment of itself, and writes
# down what pip is asked for.
PYTHON = """#!/bin/bash
case "$*" in
  "-c import torch") exit {has_torch} ;;
  -c*) exec {python} -c 'import sys
sys.version_info = {version}
if not {has_venv}: sys.modules["ensurepip"] = None
exec(sys.argv[1])' "$2" ;;
  "-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/pip" ;;
  *--dry-run*) echo '"name": "{dependency}"' ;;
  *) echo "fetching ${{@: -1}}" ;;
esac
"""


class Machine:
    """A PATH with the tools that the script runs, and what a test puts there."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(str(shutil.which(tool)))

    def add(self, name: str, script: str = "#!/bin/bash\n") -> None:
        (self.bin / name).write_text(script, encoding="utf-8")
        (self.bin / name).chmod(0o755)

    def add_python(
        self,
        name: str,
        version: tuple[int, int, int],
        *,
        has_venv: bool = True,
        has_torch: bool = False,
        dependency: str = "sympy",
    ) -> None:
        values = {"python": sys.executable, "version": version, "has_venv": has_venv}
        status = 0 if has_torch else 1
        self.add(name, PYTHON.format(has_torch=status, dependency=dependency, **values))

    def run(self, argument: str = ".venv", **variables: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": str(self.bin), **variables}
        command = [str(self.bin / "bash"), str(SCRIPT), argument]
        return subprocess.run(
            command, env=env, cwd=self.folder, capture_output=True, text=True, encoding="utf-8"
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_first_python_that_will_do_is_taken(machine: Machine) -> None:
    machine.add_python("python3", (3, 14, 0))
    machine.add_python("python3.12", (3, 12, 1), has_torch=True)
    machine.add_python("python3.11", (3, 11, 2))

    assert f"Python 3.12.1 ({machine.bin}/python3.12)" in machine.run().stdout


def test_the_python_asked_for_comes_first(machine: Machine) -> None:
    machine.add_python("python3", (3, 13, 0))
    machine.add_python("python3.11", (3, 11, 2), has_torch=True)

    assert "Python 3.11.2" in machine.run(PYTHON="python3.11").stdout


def test_without_a_python_it_says_how_to_get_one(machine: Machine) -> None:
    machine.add_python("python3", (3, 10, 0))

    done = machine.run()

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "no Python 3.11 to 3.13 was found" in line
    assert "astral.sh/uv/install.sh" in line


def test_without_a_python_uv_brings_one(machine: Machine) -> None:
    machine.add_python("given", (3, 13, 0), has_torch=True)
    machine.add("uv", '#!/bin/bash\necho "uv $*"\nexec given -m venv .venv\n')

    done = machine.run()

    assert done.returncode == 0, done.stderr
    assert "uv venv --seed --python 3.13 .venv" in done.stdout


@pytest.mark.skipif(os.getuid() != 0, reason="the command begins with sudo for others")
def test_without_venv_it_says_which_package_brings_it(machine: Machine) -> None:
    machine.add_python("python3", (3, 13, 5), has_venv=False)

    done = machine.run()

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("install: Python 3.13.5 lacks venv: apt-get install python3.13-venv")


def test_it_names_the_system_packages_that_are_missing(machine: Machine) -> None:
    machine.add_python("python3", (3, 13, 5), has_venv=False)
    assert machine.run("--system-packages").stdout.split() == ["python3.13-venv", "g++"]

    machine.add("g++")
    machine.add_python("python3", (3, 13, 5))
    assert machine.run("--system-packages").stdout == ""


def test_the_size_of_what_it_fetches_is_said_before(machine: Machine) -> None:
    machine.add_python("python3", (3, 13, 5))
    machine.add("uv")  # succeeds

    done = machine.run()

    assert done.returncode == 0, done.stderr
    size, fetched = (done.stdout.index(words) for words in ("about 0.8 GB", "fetching .[demo,"))
    assert "its CPU build: about 0.2 GB" in done.stdout
    assert size < fetched


@pytest.mark.parametrize(("dependency", "says"), [("nvidia-cublas", True), ("sympy", False)])
def test_without_the_cpu_build_the_size_of_cuda_is_said_before(
    machine: Machine, dependency: str, says: bool
) -> None:
    machine.add_python("python3", (3, 13, 5), dependency=dependency)
    machine.add("uv", "#!/bin/bash\nexit 1\n")

    lines = machine.run().stdout.splitlines()

    before = lines[: lines.index("fetching torch==2.13.0")]
    assert any("CPU builds cannot be reached" in line for line in before)
    assert any("the build with CUDA: about 2.7 GB to fetch" in line for line in before) == says


def test_without_a_compiler_it_says_which_tests_are_skipped(machine: Machine) -> None:
    machine.add_python("python3", (3, 13, 5), has_torch=True)

    last = machine.run().stdout.splitlines()[-1]

    assert "skipped without g++" in last
    assert last.endswith("apt-get install g++")
