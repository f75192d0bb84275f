"""Parallel layouts must not change the result: losses over 20 steps of packed documents."""

from functools import cache
from pathlib import Path

import pytest
from support.processes import run_processes
from support.steps import losses
from support.tiny import make_packs, tiny_recipe

LAYOUTS = {
    "one process": (1, {}),
    "TP 2": (2, {"tensor": 2}),
    "TP 2 with sequence parallel": (2, {"tensor": 2, "sequence": True}),
    "CP 2": (2, {"context": 2}),
    "DP 2": (2, {}),
    "TP 2 x CP 2": (4, {"tensor": 2, "context": 2}),
    "TP 2 x CP 2 x DP 2": (8, {"tensor": 2, "context": 2, "sequence": True}),
}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_packs(tmp_path_factory.mktemp("packs"))


@cache
def losses_of(pack: Path, processes: int) -> dict[tuple[str, bool], list[float]]:
    """Losses of all layouts of so many processes, under the plain and the distributed optimizer."""
    cases = {
        (name, distributed): {**layout, "distributed_optimizer": distributed}
        for name, (size, layout) in LAYOUTS.items()
        for distributed in (False, True)
        if size == processes
    }
    recipes = [tiny_recipe(pack, pack.parent, parallel=layout) for layout in cases.values()]
    return dict(zip(cases, run_processes(_all_losses, processes, recipes)[0], strict=True))


def _all_losses(recipes: list) -> list[list[float]]:
    return [losses(recipe, last=20) for recipe in recipes]


@pytest.mark.parametrize("distributed", [False, True], ids=["plain", "distributed"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_same_losses_in_every_layout(pack: Path, name: str, distributed: bool) -> None:
    alone = losses_of(pack, 1)["one process", False]
    together = losses_of(pack, LAYOUTS[name][0])[name, distributed]
    assert alone[-1] < 0.9 * alone[0], "the steps must move the weights for this to mean anything"
    assert together == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recompute_changes_nothing(pack: Path, recompute: str) -> None:
    recipe = tiny_recipe(pack, pack.parent, recompute=recompute, model={"dropout": 0.1})
    plain = tiny_recipe(pack, pack.parent, model={"dropout": 0.1})
    both = run_processes(_all_losses, 1, [plain, recipe])[0]
    assert both[1][:5] == pytest.approx(both[0][:5], rel=1e-6)


def test_bf16_stays_near_fp32(pack: Path) -> None:
    recipe = tiny_recipe(pack, pack.parent, precision="bf16")
    half = run_processes(_all_losses, 1, [recipe])[0][0]
    assert half == pytest.approx(losses_of(pack, 1)["one process", False], rel=2e-2)
