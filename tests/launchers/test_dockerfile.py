"""The image cannot be built here: lint it, and run those of its steps that need no GPU."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PIN = re.compile(r"([a-z][a-z0-9-]+)(?:\[\w+\])?==([\w.]+)")


def instructions(keyword: str) -> list[str]:
    joined = DOCKERFILE.replace("\\\n", "")
    return [
        line.removeprefix(keyword).strip()
        for line in joined.splitlines()
        if line.startswith(keyword)
    ]


def test_hadolint_has_nothing_to_warn_of() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint, "pip install '.[test]' brings hadolint"
    command = [hadolint, "--failure-threshold", "warning", "--no-color", "Dockerfile"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout


def test_it_pins_what_the_constraints_say() -> None:
    constraints = dict(
        PIN.findall((ROOT / "tools/docker-constraints.txt").read_text(encoding="utf-8"))
    )
    pins = dict(PIN.findall(DOCKERFILE))
    assert {"torch", "megatron-core", "deepspeed"} <= pins.keys() & constraints.keys()
    assert {n: v for n, v in pins.items() if constraints.get(n, v) != v} == {}


def test_every_dependency_has_a_pin_that_the_project_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["serve"], *extras["tracking"]]
    lines = (ROOT / "tools/docker-constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(r.name): str(r.specifier) for r in map(Requirement, lines[1:])}
    for wants in map(Requirement, wanted):
        pinned = pins[canonicalize_name(wants.name)].removeprefix("==")
        assert wants.specifier.contains(pinned), f"{wants} but {pinned} in the image"


def test_what_is_installed_by_name_is_pinned() -> None:
    for step in instructions("RUN"):
        for package in re.findall(r"pip install ([^&]+)", step):
            names = [word.strip('"') for word in package.split() if not word.startswith("--")]
            loose = [name for name in names if not re.search(r"==|@\$APEX_COMMIT$|^\.", name)]
            assert loose == []


def test_it_does_not_run_as_root() -> None:
    assert instructions("USER")[-1].isdigit()
    assert int(instructions("USER")[-1]) > 0


@pytest.mark.slow
def test_its_own_install_gives_a_healthy_emu3(tmp_path: Path) -> None:
    """What COPY brings, installed as the image does it, and the image's health check on it."""
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8"
    )
    for name in filter(None, files.stdout.split("\0")):
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "copy" / name)
    step = next(run for run in instructions("RUN") if "[serve,tracking]" in run)
    assert 'pip install ".[serve,tracking]"' in step
    # Its dependencies are here already.
    options = ["--no-deps", "--no-build-isolation", "--target", str(tmp_path / "site")]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", *options, ".[serve,tracking]"]
    subprocess.run(pip, cwd=tmp_path / "copy", check=True)
    health = re.search(r'CMD \["emu3", "(\w+)"\]\n', DOCKERFILE)
    assert health
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
    code += "from emu3_megatron import cli; assert 'site' in cli.__file__\n"
    code += f"cli.main([{health[1]!r}])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
