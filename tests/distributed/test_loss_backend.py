"""The fused head and loss train as the unfused one does, which keeps all logits."""

from pathlib import Path

import pytest
from support.processes import run_processes
from support.steps import losses
from support.tiny import make_packs, tiny_recipe

LAYOUTS = {
    "one process": (1, {}),
    "TP 2 with sequence parallel": (2, {"tensor": 2, "sequence": True}),
}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_packs(tmp_path_factory.mktemp("packs"))


def _losses_of_both(recipes: list) -> list[list[float]]:
    return [losses(recipe, last=10) for recipe in recipes]


@pytest.mark.parametrize("name", LAYOUTS)
def test_losses_are_those_of_the_unfused_head(pack: Path, name: str) -> None:
    processes, parallel = LAYOUTS[name]
    settings = {"parallel": parallel, "objective": {"z_loss": 1e-3}}
    recipes = [
        tiny_recipe(pack, pack.parent, backend={"loss": backend}, **settings)
        for backend in ("auto", "unfused")
    ]

    fused, unfused = run_processes(_losses_of_both, processes, recipes)[0]

    assert fused[-1] < 0.9 * fused[0], "the steps must move the weights for this to mean anything"
    assert fused == pytest.approx(unfused, rel=1e-5)
