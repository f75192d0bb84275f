"""Who imports whom: without circles, light where it must be, and without optional packages."""

import ast
import subprocess
import sys
from pathlib import Path

import emu3_kernels
import pytest

import emu3_megatron

PACKAGE = Path(emu3_megatron.__file__).parent
KERNELS = Path(emu3_kernels.__file__).parent

# What a room may import besides itself, and with it all that those may import.
ALLOWED = {
    "errors": set(),
    "files": set(),
    "manifest": {"errors", "files"},
    "vocabulary": {"errors"},
    "grammar": {"vocabulary"},
    "config": {"vocabulary"},
    "parallel": {"config"},
    "vision": {"config", "files"},
    "data": {"grammar", "config", "parallel", "files"},
    "model": {"parallel", "emu3_kernels"},
    "training": {"model", "data", "manifest"},
    "alignment": {"training"},
    "generation": {"model", "vision", "grammar"},
    "serving": {"generation"},
    "interchange": {"training", "vision"},
    "planning": {"config"},
    "prepare": {"vision", "data"},
    "emu3_kernels": set(),
}
# Import what they like; nobody else imports them.
ON_TOP = {"cli", "verbs", "installation", "demo", "__main__"}
ROOMS = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
ROOMS = sorted(ROOMS - ON_TOP - {"__init__", "__pycache__"})

OPTIONAL = (
    "transformer_engine flash_attn apex deepspeed wandb tensorboard dashscope transformers "
    "ray pyarrow scenedetect cv2 rapidocr_onnxruntime"
)


def reachable(room):
    found, left = {room}, [room]
    while left:
        new = ALLOWED[left.pop()] - found
        found |= new
        left += new
    return found


def imports_of(file):
    """Names of the modules that a file imports anywhere, in functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(room):
    path = PACKAGE / room
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def rooms_that(file):
    """The rooms of ours that a file imports."""
    for name in imports_of(file):
        top, *rest = name.split(".")
        if top == "emu3_kernels":
            yield top
        if top == "emu3_megatron" and rest and (PACKAGE / rest[0]).exists():
            yield rest[0]
        if top == "emu3_megatron" and rest and (PACKAGE / f"{rest[0]}.py").exists():
            yield rest[0]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_it_may(room):
    assert room in ALLOWED, f"a new room: say in ALLOWED what {room} may import"
    allowed = reachable(room)
    # Training the vision tokenizer shares metrics with training the decoder.
    if room == "vision":
        allowed = allowed | {"training"}
    wrong = {
        f"{file.relative_to(PACKAGE)} imports {other}"
        for file in files_of(room)
        for other in rooms_that(file)
        if other not in allowed
    }
    assert wrong == set()


def test_only_the_training_of_the_vision_tokenizer_imports_training():
    importers = {file.stem for file in files_of("vision") if "training" in rooms_that(file)}

    assert importers <= {"train"}


def test_the_rooms_form_no_circle():
    for room in ALLOWED:
        assert all(room not in reachable(other) for other in ALLOWED[room])


def test_kernels_know_torch_and_triton_only():
    foreign = {
        name.split(".")[0]
        for file in KERNELS.rglob("*.py")
        for name in imports_of(file)
        if name.split(".")[0] not in sys.stdlib_module_names
    }

    assert foreign <= {"torch", "triton", "emu3_kernels"}


def run(code):
    """Run Python code in a fresh process; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("module", ["cli", "grammar", "config", "verbs"])
def test_what_must_be_light_imports_no_torch(module):
    loaded = run(f"import sys, emu3_megatron.{module}; print(*sys.modules)")

    assert f"emu3_megatron.{module}" in loaded
    assert {"torch", "megatron", "triton", "tiktoken"}.isdisjoint(loaded)


def test_every_module_imports_without_a_gpu_or_optional_packages():
    code = f"""
import importlib, os, pkgutil, sys

os.environ["CUDA_VISIBLE_DEVICES"] = ""

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL.split()}:
            raise ModuleNotFoundError(name + " is not installed", name=name)

sys.meta_path.insert(0, Absent())
import emu3_kernels, emu3_megatron

for package in (emu3_kernels, emu3_megatron):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)
            print(module.name)
"""
    imported = run(code)

    assert {"emu3_megatron.training.metrics", "emu3_kernels.exchange"} <= set(imported)
