"""Batches of a recipe's data, without a run."""

from types import SimpleNamespace
from typing import Any

from emu3_megatron.config import Recipe
from emu3_megatron.data.setting import Setting


def setting_of(recipe: Recipe, **changes: Any) -> Setting:
    """What the recipe's data is built with."""
    values = {
        "vocabulary": recipe.model.vocabulary(),
        "batch": recipe.batch,
        "seed": recipe.run.seed,
        "weights": recipe.objective.weights,
    }
    return Setting(**{**values, **changes})


def reader(data_rank: int = 0, data_size: int = 1, context_size: int = 1, place: Any = None) -> Any:
    """What data asks of a run: this rank's place in the mesh, and the trainer's function."""
    mesh = SimpleNamespace(data_rank=data_rank, data_size=data_size, context_size=context_size)
    return SimpleNamespace(mesh=mesh, trainer=SimpleNamespace(place=place))
