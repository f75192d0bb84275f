"""`make gpu-check`: what a machine without a network would lack, said before it is at hand."""

import importlib.util
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("gpu_check", ROOT / "tools" / "gpu_check.py")
assert SPEC is not None
assert SPEC.loader is not None
gpu_check = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(gpu_check)

MACHINE = "python==3.12  # of CUDA 13\ntorch==2.11.0\nnumpy==2.5.2\ntyping_extensions\n"


def wheel(folder: Path, name: str, version: str, *requires: str, tag: str = "py3-none-any") -> None:
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {need}" for need in requires]
    stem = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-{tag}.whl", "w") as archive:
        archive.writestr(f"{stem}.dist-info/METADATA", "\n".join(lines) + "\n")


def faults(folder: Path, *wanted: str) -> list[str]:
    python, there = gpu_check.read_machine(MACHINE)
    found = gpu_check.check(gpu_check.read_wheels(folder), there, python, list(wanted))
    return [fault.said for fault in found]


def test_wheels_and_machine_together_have_everything(tmp_path: Path) -> None:
    wheel(tmp_path, "pydantic", "2.14.4", "pydantic-core==2.50.5", 'tomli; python_version < "3.11"')
    wheel(tmp_path, "pydantic-core", "2.50.5", tag="cp312-cp312-manylinux_2_28_x86_64")

    assert faults(tmp_path, "pydantic>=2.7,<3", "torch>=2.10", "numpy") == []


def test_a_pin_that_another_wheel_breaks(tmp_path: Path) -> None:
    wheel(tmp_path, "pydantic", "2.14.4", "pydantic-core==2.50.5")
    wheel(tmp_path, "pydantic-core", "2.50.4")

    (fault,) = faults(tmp_path, "pydantic")

    assert fault == (
        "pydantic-core==2.50.5: pydantic_core-2.50.4-py3-none-any.whl has 2.50.4; "
        "pydantic 2.14.4 asks for it"
    )


@pytest.mark.parametrize(
    ("need", "fault"),
    [
        ("rich", "rich: missing; a 1 asks for it"),
        ("numpy<2", "numpy<2: the machine has 2.5.2; a 1 asks for it"),
        (
            "typing-extensions>=4.16",
            "typing-extensions>=4.16: the machine's version is unknown; a 1 asks for it",
        ),
    ],
)
def test_what_a_wheel_needs_is_followed(tmp_path: Path, need: str, fault: str) -> None:
    wheel(tmp_path, "a", "1", need)

    assert faults(tmp_path, "a") == [fault]


def test_wheels_that_pip_would_refuse(tmp_path: Path) -> None:
    wheel(tmp_path, "a", "1")
    wheel(tmp_path, "a", "2")
    wheel(tmp_path, "b", "1", tag="cp311-cp311-manylinux_2_28_x86_64")

    assert faults(tmp_path, "a") == [
        "a-2-py3-none-any.whl beside a-1-py3-none-any.whl: keep one of them",
        "b-1-cp311-cp311-manylinux_2_28_x86_64.whl: not for Python 3.12 on Linux x86_64",
    ]


def test_the_command_that_fetches_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = ROOT / "tools" / "gpu-machine.txt"

    assert gpu_check.main(str(tmp_path), str(machine)) == 1

    command = capsys.readouterr().out.splitlines()[-1]
    assert command.startswith("python -m pip download --no-deps")
    assert "'megatron-core<0.20,>=0.16.1'" in command
    assert f"-d {tmp_path}" in command
