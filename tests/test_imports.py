"""Who imports whom: without circles, light where it must be, and without optional packages."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import emu3_kernels
import pytest
from support.processes import run_processes
from support.steps import losses
from support.tiny import make_packs, tiny_recipe

import emu3_megatron

PACKAGE = Path(emu3_megatron.__file__).parent
KERNELS = Path(emu3_kernels.__file__).parent

# What is open to every package.
OPEN = {"errors", "files", "manifest", "pages", "progress", "upstream"}
# What a package may import besides itself, and with it all that those may import.
ALLOWED: dict[str, set[str]] = {
    **{name: set() for name in OPEN},
    "vocabulary": set(),
    "grammar": {"vocabulary"},
    "config": {"vocabulary"},
    "media": set(),
    "parallel": {"config"},
    "context_parallel": set(),
    "vision": {"config", "media", "emu3_kernels"},
    "data": {"grammar", "config", "context_parallel", "parallel"},
    "checkpoints": {"parallel"},
    "model": {"checkpoints", "parallel", "context_parallel", "emu3_kernels"},
    "runs": {"checkpoints"},
    "interchange": {"model", "vision"},
    "training": {"data", "model", "runs", "interchange"},
    "generation": {"model", "vision", "grammar"},
    "alignment": {"training", "generation"},
    "tokenizer_training": {"vision", "data", "runs"},
    "evaluation": {"generation", "training"},
    "serving": {"generation"},
    "planning": {"training"},
    "prepare": {"vision", "media", "data"},
    "emu3_kernels": set(),
}
# Put everything together; nobody else imports them.
ON_TOP = {"cli", "demo", "__main__"}

PACKAGES = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
PACKAGES = sorted(PACKAGES - ON_TOP - {"__init__", "__pycache__"})

# Functions outside config/ and cli/ that take a whole recipe.
WHOLE_RECIPES = {
    "prepare/pipeline.py _prepare",
    "prepare/pipeline.py _refuse_unready",
    "prepare/pipeline.py prepare",
    "tokenizer_training/building.py build_trainer",
    "tokenizer_training/stage.py _assemble",
    "tokenizer_training/stage.py _completed",
    "tokenizer_training/stage.py train_tokenizer",
    "tokenizer_training/trainer.py __init__",
    "training/interfaces.py of",
    "training/stage.py _assemble",
    "training/stage.py _completed",
    "training/stage.py _describe",
    "training/stage.py train",
}

OPTIONAL = (
    "transformer_engine flash_attn apex deepspeed peft accelerate wandb tensorboard dashscope "
    "transformers ray pyarrow scenedetect cv2 rapidocr openai starlette uvicorn prometheus_client "
    "torchmetrics py3langid"
)


def reachable(package):
    """The packages that a package may import."""
    found, left = {package} | OPEN, [package]
    while left:
        new = ALLOWED[left.pop()] - found
        found |= new
        left += new
    return found


def imports_of(file):
    """Names of the modules that a file imports anywhere, in functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(package):
    path = PACKAGE / package
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def packages_in(file):
    """The packages of ours that a file imports."""
    for name in imports_of(file):
        top, *rest = name.split(".")
        if top == "emu3_kernels":
            yield top
        if top == "emu3_megatron" and rest and (PACKAGE / rest[0]).exists():
            yield rest[0]
        if top == "emu3_megatron" and rest and (PACKAGE / f"{rest[0]}.py").exists():
            yield rest[0]


def forbidden_imports():
    for package in PACKAGES:
        assert package in ALLOWED, f"a new package: say in ALLOWED what {package} may import"
        for file in files_of(package):
            for other in set(packages_in(file)) - reachable(package):
                yield f"{file.relative_to(PACKAGE)} imports {other}"


def test_packages_import_what_the_table_allows():
    assert set(forbidden_imports()) == set()


def test_the_table_has_no_circle():
    for package in ALLOWED:
        assert all(package not in reachable(other) - OPEN for other in ALLOWED[package])


def module_of(file):
    name = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


def test_no_module_imports_itself_through_others():
    """Imports inside functions count too."""
    files = {module_of(file): file for file in PACKAGE.rglob("*.py")}
    # `from package import module` leads to the module, and not to what its package exports.
    packages = {name for name, file in files.items() if file.name == "__init__.py"}
    graph = {}
    for name, file in files.items():
        found = {other for other in imports_of(file) if other in files}
        parents = {other.rpartition(".")[0] for other in found}
        graph[name] = found - (packages & parents) - {name}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"imports in a circle: {' <- '.join(error.args[1])}")


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
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("module", ["cli", "grammar", "config", "upstream"])
def test_what_must_be_light_imports_no_torch(module):
    loaded = run(f"import sys, emu3_megatron.{module}; print(*sys.modules)")

    assert f"emu3_megatron.{module}" in loaded
    assert {"torch", "megatron", "triton", "tiktoken"}.isdisjoint(loaded)


def test_a_vision_tokenizer_opens_without_training_code(tmp_path):
    loaded = run(f"""
import sys
from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.vision.tokenizer import VisionTokenizer

VisionTokenizer(TokenizerNetwork(preset="tiny")).save({str(tmp_path)!r})
VisionTokenizer.load({str(tmp_path)!r})
print(*sys.modules)
""")

    packages = {".".join(name.split(".")[:2]) for name in loaded}
    assert "emu3_megatron.vision" in packages
    training = {f"emu3_megatron.{name}" for name in ("training", "runs", "data")}
    assert packages.isdisjoint(training | {"emu3_megatron.tokenizer_training"})
    assert not {name for name in loaded if name.split(".")[0] == "megatron"}


def test_a_decoder_opens_and_generates_without_training_code(tmp_path):
    recipe = tiny_recipe(make_packs(tmp_path), tmp_path)
    run_processes(losses, 1, recipe, 1, None, tmp_path / "checkpoints")

    loaded = run(f"""
import sys
from pathlib import Path
from emu3_megatron import parallel
from emu3_megatron.generation.images import generate_images
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.model.opening import open_decoder

mesh = parallel.start()
mesh.seed(0, 0)
decoder, recipe = open_decoder(Path({str(tmp_path)!r}), mesh)
vocabulary = recipe.model.vocabulary()
generate_images(decoder, vocabulary, ["a cat"], 1, 2, SamplingSettings())
print(*sys.modules)
""")

    packages = {".".join(name.split(".")[:2]) for name in loaded}
    assert "emu3_megatron.model" in packages
    assert packages.isdisjoint(f"emu3_megatron.{name}" for name in ("training", "runs", "data"))


def functions_that_take_a_whole_recipe():
    for file in PACKAGE.rglob("*.py"):
        if file.relative_to(PACKAGE).parts[0] in ("config", "cli"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.args, *node.args.kwonlyargs]
                kinds = {ast.unparse(a.annotation).strip("'") for a in arguments if a.annotation}
                if kinds & {"Recipe", "PrepareRecipe", "TokenizerRecipe"}:
                    yield f"{file.relative_to(PACKAGE)} {node.name}"


def test_few_functions_take_a_whole_recipe():
    """A component takes its own section: it can then be used, and tested, without the rest."""
    assert set(functions_that_take_a_whole_recipe()) == WHOLE_RECIPES
    assert len(WHOLE_RECIPES) <= 13


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

    assert {"emu3_megatron.runs.metrics.log", "emu3_kernels.exchange"} <= set(imported)
