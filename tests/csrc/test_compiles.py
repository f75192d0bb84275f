"""nvcc compiles csrc/ for Hopper; what it says of registers, and the instructions that matter."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from emu3_kernels import cuda

CSRC = Path(__file__).parents[2] / "csrc"

# Registers a thread may have: 64 let two blocks of 512 threads share a multiprocessor.
REGISTERS = {
    "rows_kernel": 64,
    "statistics_kernel": 64,
    "gradient_kernel": 64,
    "merge_kernel": 64,
    "accumulate_kernel": 64,
    "permute_kernel": 64,
}
# SASS: what reads and writes 16 bytes at once, what copies in bulk and talks to other blocks.
INSTRUCTIONS = {
    "rows_kernel": ["UBLKCP", "LDS.128", "STAS.128", "STG.E.128"],
    "statistics_kernel": ["LDG.E.128"],
    "gradient_kernel": ["LDG.E.128", "STG.E.128"],
    "merge_kernel": ["LDG.E.128", "STG.E.128"],
    "accumulate_kernel": ["LDG.E.128", "STG.E.128"],
    "permute_kernel": ["LDG.E.128", "STG.E.128"],
}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the library and the register report."""
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        pytest.skip("no nvcc: csrc/ cannot be compiled")
    folder = tmp_path_factory.mktemp("csrc")
    subprocess.run(
        ["make", "-C", CSRC, f"LIB_FOLDER={folder}", f"NVCC={nvcc}"], check=True, timeout=300
    )
    return folder


def reports(folder: Path) -> list[tuple[str, str]]:
    """The name of each compiled kernel, with what ptxas says of it."""
    text = (folder / "registers.txt").read_text(encoding="utf-8")
    _, *entries = re.split(r"Compiling entry function '", text)
    return [(re.search(r"[a-z]+_kernel", entry).group(), entry) for entry in entries]


def test_the_compiler_has_nothing_to_say(built: Path) -> None:
    assert "warning" not in (built / "registers.txt").read_text(encoding="utf-8")


def test_no_kernel_spills_or_has_too_many_registers(built: Path) -> None:
    found = reports(built)

    assert {name for name, _ in found} == set(REGISTERS)
    for name, report in found:
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report, name
        registers = int(re.search(r"Used (\d+) registers", report).group(1))
        assert registers <= REGISTERS[name], f"{name} has {registers} registers"


def arguments_of_rows(rows: int, columns: int) -> list:
    return [None, columns, None, None, 0.0, None, None, None, rows, columns]


def test_the_library_is_what_the_binding_expects(built: Path) -> None:
    library = cuda.bind(built / "libemu3_kernels.so")

    # No rows need no device.
    assert library.emu3_cross_entropy_statistics(None, 0, *[None] * 4, 0, 8, None) == 0
    assert library.emu3_merge_attention(None, None, 0, None, None, 0, 0, 8, 64, None) == 0
    too_many = cuda.MAX_COLUMNS + 1
    error = library.emu3_cross_entropy_rows(*arguments_of_rows(1, too_many), None)
    assert b"invalid argument" in library.emu3_error(error)


def test_make_builds_where_the_binding_looks() -> None:
    # OUT is where `make gpu` puts results; it must not lead the library astray.
    command = ["make", "--dry-run", "--always-make", "csrc", "OUT=elsewhere"]
    done = subprocess.run(
        command, cwd=CSRC.parent, check=True, capture_output=True, text=True, encoding="utf-8"
    )

    built = re.search(r"-shared -o (\S+)", done.stdout).group(1)
    assert (CSRC / built).resolve() == cuda.LIBRARY.resolve()


def test_signatures_are_those_of_the_header() -> None:
    header = (CSRC / "api.h").read_text(encoding="utf-8")
    declared = re.findall(r"^int (emu3_\w+)\(([^)]*)\)", header, re.MULTILINE)

    letters = {"int64_t": "s", "float": "f", "int": "i"}
    found = {
        name: "".join(
            "p" if "*" in argument else letters[argument.split()[0]]
            for argument in arguments.split(",")
        )
        for name, arguments in declared
    }
    assert found == cuda.SIGNATURES


def cuobjdump() -> str | None:
    """CUDA's, or the one that comes with triton."""
    on_path = shutil.which("cuobjdump") or shutil.which("/usr/local/cuda/bin/cuobjdump")
    if on_path:
        return on_path
    triton = pytest.importorskip("triton", reason="no cuobjdump")
    inside = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(inside) if inside.exists() else None


@pytest.fixture(scope="session")
def sass(built: Path) -> list[str]:
    """The machine code of each kernel, from its name on."""
    tool = cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump: the machine code cannot be read")
    command = [tool, "--dump-sass", built / "libemu3_kernels.so"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8")
    return done.stdout.split("Function : ")[1:]


@pytest.mark.parametrize("kernel", INSTRUCTIONS)
def test_kernels_use_the_chips_wide_instructions(sass: list[str], kernel: str) -> None:
    bodies = [part for part in sass if kernel in part.split("\n")[0]]

    assert bodies
    for instruction in INSTRUCTIONS[kernel]:
        assert any(instruction in body for body in bodies), instruction
    assert not any(re.search(r"\b(LDL|STL)\b", body) for body in bodies), "local memory"
