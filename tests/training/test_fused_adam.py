"""torch's AdamW in one kernel: the same steps, also from a checkpoint's states."""

from pathlib import Path

import pytest
from support.processes import run_processes
from support.steps import losses
from support.tiny import make_packs, tiny_recipe

from emu3_megatron.config import Recipe
from emu3_megatron.training.engines import megatron, optimizer


def resumed_losses(recipe: Recipe, folder: Path) -> list[float]:
    """Losses of four steps, saved after the second and resumed."""
    return losses(recipe, 2, save_to=folder) + losses(recipe, 4, resume_from=folder)


def plain_and_fused(recipes: list[Recipe], folder: Path) -> list[list[float]]:
    plain = [resumed_losses(recipe, folder / f"plain{i}") for i, recipe in enumerate(recipes)]
    build = optimizer.build_optimizer

    def build_fused(*arguments):
        built = build(*arguments)
        optimizer.fuse(built)
        return built

    megatron.build_optimizer = build_fused  # as on a GPU
    fused = [resumed_losses(recipe, folder / f"fused{i}") for i, recipe in enumerate(recipes)]
    return plain + fused


def test_same_losses(tmp_path):
    pack = make_packs(tmp_path)
    recipes = [
        tiny_recipe(pack, tmp_path, parallel={"distributed_optimizer": distributed})
        for distributed in (False, True)
    ]
    *plain, fused, divided = run_processes(plain_and_fused, 1, recipes, tmp_path)[0]
    assert [fused, divided] == [pytest.approx(found, rel=1e-5) for found in plain]
