"""Hugging Face folders as the start of a run; needs no DeepSpeed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.faults import run_job
from support.processes import run_processes
from support.steps import start
from support.tiny import make_packs, tiny_recipe

from emu3_megatron.config import Recipe
from emu3_megatron.errors import InputError
from emu3_megatron.interchange.exporting import export_folder
from emu3_megatron.training.engines.hub_weights import (
    HubWeights,
    check_hub_folder,
    is_hub_folder,
)


@pytest.fixture(scope="module")
def folder(mesh: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and folders of its weights in two layouts."""
    folder = tmp_path_factory.mktemp("folders")
    make_packs(folder)
    run_processes(save, 1, recipe_of(folder), folder / "checkpoints")
    for layout in ("transformers", "baai"):
        export_folder(folder / "checkpoints", folder / layout, layout)
    return folder


def recipe_of(folder: Path, **sections: Any) -> Recipe:
    return tiny_recipe(folder / "tiny.pack", folder / "run", **sections)


def save(recipe: Recipe, folder: Path) -> None:
    steps = start(recipe)
    steps.take(0, 1)
    steps.save(folder, 1)


@pytest.mark.parametrize("layout", ["transformers", "baai"])
def test_a_folder_and_its_checkpoint_give_the_same_tensors(folder: Path, layout: str):
    weights = HubWeights(recipe_of(folder).model, torch.float32)
    expected = dict(weights.read(folder / "checkpoints" / "step-00000001"))
    found = dict(weights.read(folder / layout))

    assert is_hub_folder(folder / layout)
    assert not is_hub_folder(folder / "checkpoints" / "step-00000001")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, msg=name)


def test_a_folder_of_another_model_is_refused_by_the_field(folder: Path):
    other = recipe_of(folder, model={"layers": 3}).model

    with pytest.raises(InputError, match=r"transformers: another model: model.layers is 2 there"):
        check_hub_folder(folder / "transformers", other)
    assert check_hub_folder(folder / "baai", recipe_of(folder).model)["max_positions"] > 0


def test_megatron_asks_for_a_checkpoint_of_the_folder(folder: Path):
    run = {"init_from": str(folder / "transformers")}
    (end,) = run_job(recipe_of(folder, run=run))

    assert end.code == 2
    assert "a Hugging Face folder; make a checkpoint of it: emu3 convert import" in end.said


def test_a_folder_to_export_to_must_not_exist(folder: Path):
    (end,) = run_job(recipe_of(folder, run={"export": str(folder / "baai")}))

    assert end.code == 2
    assert f"{folder / 'baai'}: exists; choose another run.export" in end.said
