"""DPO in every layout: the same losses as on one process."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from support.pairs import dpo_recipe, pack_pairs, pairs_of_images, save_start
from support.processes import run_processes
from support.steps import start

from emu3_megatron import parallel
from emu3_megatron.config import Recipe

LAYOUTS = {
    "one process": (1, {}),
    "TP 2": (2, {"tensor": 2}),
    "TP 2 with sequence parallel": (2, {"tensor": 2, "sequence": True}),
    "CP 2": (2, {"context": 2}),
    "DP 2": (2, {}),
    "TP 2 x CP 2": (4, {"tensor": 2, "context": 2}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dpo")
    pack = pack_pairs(folder, "pairs", pairs_of_images(12))
    save_start(pack, folder)
    return folder


def recipe_of(folder: Path, **sections: Any) -> Recipe:
    return dpo_recipe(folder / "pairs.pack", folder / "run", folder / "start", **sections)


@cache
def metrics_of(folder: Path, processes: int) -> dict[tuple[str, bool], list[dict[str, float]]]:
    """Metrics of all layouts of so many processes, by the plain and the distributed optimizer."""
    cases = {
        (name, distributed): {**layout, "distributed_optimizer": distributed}
        for name, (size, layout) in LAYOUTS.items()
        for distributed in (False, True)
        if size == processes
    }
    recipes = [recipe_of(folder, parallel=layout) for layout in cases.values()]
    return dict(zip(cases, run_processes(six_steps, processes, recipes)[0], strict=True))


def six_steps(recipes: list[Recipe]) -> list[list[dict[str, float]]]:
    return [_metrics(recipe) for recipe in recipes]


def _metrics(recipe: Recipe) -> list[dict[str, float]]:
    steps = start(recipe)
    steps.engine.start_from(steps.trainer.objective.reference.checkpoint)
    results = steps.take(0, 6)
    parallel.stop(keep_processes=True)
    return [result.metrics for result in results]


@pytest.mark.parametrize("distributed", [False, True], ids=["plain", "distributed"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_six_steps_are_the_same_in_every_layout(folder: Path, name: str, distributed: bool):
    alone = metrics_of(folder, 1)["one process", False]
    together = metrics_of(folder, LAYOUTS[name][0])[name, distributed]

    assert together[0]["preference_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert alone[-1]["preference_loss"] < 0.95 * math.log(2), "the steps must move the weights"
    # While policy and reference are one model, rounding decides which side is liked more.
    together[0]["rewards/accuracies"] = alone[0]["rewards/accuracies"]
    assert len(together) == len(alone) == 6
    for row, expected in zip(together, alone, strict=True):
        assert row == pytest.approx(expected, abs=1e-5, rel=1e-5)
