"""Communication beside computation changes no loss, whoever reads the weights between steps."""

from pathlib import Path

from support.processes import run_processes
from support.steps import start
from support.tiny import make_packs, tiny_recipe

from emu3_megatron import parallel
from emu3_megatron.config import Recipe

OVERLAPS = {"overlap_grad_reduce": True, "overlap_param_gather": True}


def losses_and_read_weights(recipe: Recipe) -> tuple[list[float], list[float]]:
    """Losses, and after steps 2 and 4 what a reader of the live weights finds."""
    run = start(recipe)
    found, read = [], []
    for first, last in ((0, 2), (2, 4), (4, 5)):
        found += [result.metrics["loss"] for result in run.take(first, last)]
        if last < 5:
            with run.engine.decoder() as decoder:
                read.append(sum(float(weight.double().sum()) for weight in decoder.parameters()))
    parallel.stop(keep_processes=True)
    return found, read


def both(recipes: list[Recipe]) -> list[tuple[list[float], list[float]]]:
    return [losses_and_read_weights(recipe) for recipe in recipes]


def test_losses_and_weights_are_the_same(tmp_path: Path) -> None:
    pack = make_packs(tmp_path)
    layout = {"distributed_optimizer": True}
    recipes = [
        tiny_recipe(pack, tmp_path, parallel=layout | overlaps) for overlaps in ({}, OVERLAPS)
    ]
    ranks = run_processes(both, 2, recipes)
    for plain, overlapped in ranks:
        assert overlapped == plain
    assert ranks[0] == ranks[1]
