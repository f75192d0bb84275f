"""Stop after step 10 and resume: as if nothing had happened."""

from functools import cache
from pathlib import Path

import pytest
from support.processes import run_processes
from support.steps import losses
from support.tiny import make_packs, tiny_recipe

from emu3_megatron.config import Recipe

OPTIMIZERS = {"plain": False, "distributed": True}
LAYOUTS = {
    "TP 2": (2, {"tensor": 2, "sequence": True}),
    "DP 2": (2, {}),
    "CP 2": (2, {"context": 2}),
    "one process": (1, {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    make_packs(folder)
    return folder


def recipe_of(folder: Path, layout: str, optimizer: str, precision: str) -> Recipe:
    parallel = {**LAYOUTS[layout][1], "distributed_optimizer": OPTIMIZERS[optimizer]}
    return tiny_recipe(
        folder / "tiny.pack",
        folder,
        parallel=parallel,
        precision=precision,
        model={"dropout": 0.1},
    )


def run(folder: Path, layout: str, optimizer: str, precision: str, *arguments: object) -> list:
    recipe = recipe_of(folder, layout, optimizer, precision)
    return run_processes(losses, LAYOUTS[layout][0], recipe, *arguments)[0]


@cache
def stopped_after_ten(folder: Path, layout: str, optimizer: str, precision: str) -> Path:
    checkpoint = folder / f"{layout}-{optimizer}-{precision}"
    run(folder, layout, optimizer, precision, 10, None, checkpoint)
    return checkpoint


@pytest.mark.parametrize(
    ("layout", "optimizer", "precision"),
    [("TP 2", "plain", "fp32"), ("DP 2", "distributed", "fp32"), ("DP 2", "distributed", "bf16")],
)
def test_resume_on_the_same_layout_is_bit_exact(
    folder: Path, layout: str, optimizer: str, precision: str
) -> None:
    straight = run(folder, layout, optimizer, precision, 20)
    checkpoint = stopped_after_ten(folder, layout, optimizer, precision)
    assert run(folder, layout, optimizer, precision, 20, checkpoint) == straight[10:]


@pytest.mark.parametrize(
    ("saved", "resumed", "optimizer"),
    [
        ("TP 2", "one process", "plain"),
        ("DP 2", "TP 2", "distributed"),
        ("DP 2", "CP 2", "distributed"),
    ],
)
def test_resume_on_another_layout_is_equal_to_rounding(
    folder: Path, saved: str, resumed: str, optimizer: str
) -> None:
    checkpoint = stopped_after_ten_without_dropout(folder, saved, optimizer)
    straight = run_without_dropout(folder, saved, optimizer, 20)
    rest = run_without_dropout(folder, resumed, optimizer, 20, checkpoint)
    assert rest == pytest.approx(straight[10:], rel=1e-5)


def run_without_dropout(folder: Path, layout: str, optimizer: str, *arguments: object) -> list:
    recipe = recipe_of(folder, layout, optimizer, "fp32")
    model = recipe.model.model_copy(update={"dropout": 0.0})
    recipe = recipe.model_copy(update={"model": model})
    return run_processes(losses, LAYOUTS[layout][0], recipe, *arguments)[0]


@cache
def stopped_after_ten_without_dropout(folder: Path, layout: str, optimizer: str) -> Path:
    checkpoint = folder / f"{layout}-{optimizer}-without-dropout"
    run_without_dropout(folder, layout, optimizer, 10, None, checkpoint)
    return checkpoint
