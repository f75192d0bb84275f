"""The kernels of csrc/, compiled for the host and run on an emulated machine."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
FLAGS = ["-std=c++17", "-O2", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"]


class Emulator:
    """Calls into tests/csrc/emulated.cpp: tensors and arrays as pointers, floats as floats."""

    def __init__(self, library: Path):
        self.library = ctypes.CDLL(str(library))
        self.library.failure.restype = ctypes.c_char_p

    def __call__(self, kernel: str, *arguments: Any, seed: int = 0) -> None:
        getattr(self.library, kernel)(*map(self.as_c, arguments), ctypes.c_uint(seed))
        why = self.library.failure()
        if why:
            raise RuntimeError(f"{kernel}: {why.decode()}")

    @staticmethod
    def as_c(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return ctypes.c_void_p(value.data_ptr())
        if isinstance(value, float):
            return ctypes.c_float(value)
        return ctypes.c_int64(value)


def compile_emulator(csrc: Path, folder: Path) -> Emulator:
    """Compile the kernels of a csrc folder for the host."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++: the kernels cannot be compiled for the host")
    library = folder / "libemulated.so"
    subprocess.run(
        [compiler, *FLAGS, f"-I{HERE}", f"-I{csrc}", "-o", library, HERE / "emulated.cpp"],
        check=True,
    )
    return Emulator(library)


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return compile_emulator(CSRC, tmp_path_factory.mktemp("emulated"))


@pytest.fixture
def changed_emulator(tmp_path: Path) -> Callable[[str, str, str], Emulator]:
    """Compile the kernels with one piece of one file replaced."""

    def compile_changed(name: str, old: str, new: str) -> Emulator:
        folder = tmp_path / "csrc"
        shutil.copytree(CSRC, folder)
        text = (folder / name).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{name} holds {old!r} {text.count(old)} times"
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")
        return compile_emulator(folder, tmp_path)

    return compile_changed
