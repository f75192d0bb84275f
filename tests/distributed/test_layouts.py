"""Parallel layouts must not change the result: losses over 10 steps of packed documents."""

from functools import cache
from pathlib import Path

import pytest
from support.processes import run_processes
from support.steps import losses
from support.tiny import make_packs, tiny_recipe

from emu3_megatron.config import Recipe
from emu3_megatron.model import Decoder

LAYOUTS = {
    "one process": (1, {}),
    "TP 2": (2, {"tensor": 2}),
    "TP 2 with sequence parallel": (2, {"tensor": 2, "sequence": True}),
    "CP 2": (2, {"context": 2}),
    "CP 4": (4, {"context": 4}),
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


def _all_losses(recipes: list[Recipe], last: int = 10) -> list[list[float]]:
    return [losses(recipe, last) for recipe in recipes]


@pytest.mark.parametrize("distributed", [False, True], ids=["plain", "distributed"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_same_losses_in_every_layout(pack: Path, name: str, distributed: bool) -> None:
    alone = losses_of(pack, 1)["one process", False]
    together = losses_of(pack, LAYOUTS[name][0])[name, distributed]
    assert alone[-1] < 0.9 * alone[0], "the steps must move the weights for this to mean anything"
    assert together == pytest.approx(alone, rel=1e-4)


def test_the_same_captions_are_left_out_in_every_layout(pack: Path) -> None:
    """Rows without some captions are shorter, and shared out among context parallel ranks anew."""
    recipes = [tiny_recipe(pack, pack.parent, data={"null_prompt": p}) for p in (0.0, 0.5)]
    layout = {"tensor": 2, "context": 2, "sequence": True}
    divided = tiny_recipe(pack, pack.parent, data={"null_prompt": 0.5}, parallel=layout)

    whole, shorter = run_processes(_all_losses, 1, recipes, 3)[0]
    (together,) = run_processes(_all_losses, 4, [divided], 3)[0]

    assert shorter != pytest.approx(whole, rel=1e-3)
    assert together == pytest.approx(shorter, rel=1e-5)


@pytest.mark.parametrize("context", [1, 2], ids=["CP 1", "CP 2"])
def test_recompute_changes_nothing(pack: Path, context: int) -> None:
    """Keys travel around the ring once more, and dropout drops the same."""
    shared = {"model": {"dropout": 0.1}, "parallel": {"context": context}}
    recipes = [
        tiny_recipe(pack, pack.parent, recompute=recompute, **shared)
        for recompute in ("none", "selective", "full")
    ]
    plain, selective, full = run_processes(_all_losses, context, recipes, 5)[0]
    assert selective == pytest.approx(plain, rel=1e-6)
    assert full == pytest.approx(plain, rel=1e-6)


@pytest.fixture(scope="module")
def dropped(pack: Path) -> list[float]:
    """Losses of one process under attention dropout."""
    recipes = [tiny_recipe(pack, pack.parent, model={"dropout": p}) for p in (0.0, 0.3)]
    without, dropped = run_processes(_losses_of_attention_dropout, 1, recipes)[0]
    assert dropped != pytest.approx(without, rel=1e-3)
    return dropped


@pytest.mark.parametrize(
    "layout", [{"context": 2}, {"tensor": 2}, {}], ids=["CP 2", "TP 2", "DP 2"]
)
def test_attention_dropout_is_the_same_in_every_layout(
    pack: Path, dropped: list[float], layout: dict
) -> None:
    recipe = tiny_recipe(pack, pack.parent, model={"dropout": 0.3}, parallel=layout)
    together = run_processes(_losses_of_attention_dropout, 2, [recipe])[0][0]
    assert together == pytest.approx(dropped, rel=1e-4)


def _losses_of_attention_dropout(recipes: list[Recipe]) -> list[list[float]]:
    return [losses(recipe, last=5, prepare=_silence_other_dropout) for recipe in recipes]


def _silence_other_dropout(decoder: Decoder) -> None:
    """The other dropouts draw from random states, which differ between ranks."""
    decoder.embedding.embedding_dropout.p = 0
    for layer in decoder.block.layers:
        layer.hidden_dropout = 0


def test_bf16_stays_near_fp32(pack: Path) -> None:
    recipe = tiny_recipe(pack, pack.parent, precision="bf16")
    half = run_processes(_all_losses, 1, [recipe])[0][0]
    assert half == pytest.approx(losses_of(pack, 1)["one process", False], rel=2e-2)


# Twelve heads divide over 3 and over 4; 144 tokens over 3 context parallel ranks.
DIVISIBLE = {"hidden": 48, "heads": 12, "kv_heads": 12, "ffn": 96}
BY_THREE = {
    "TP 3": (3, {"tensor": 3}),
    "TP 3 with sequence parallel": (3, {"tensor": 3, "sequence": True}),
    "CP 3": (3, {"context": 3}),
    "DP 3": (3, {}),
    "DP 3, distributed optimizer": (3, {"distributed_optimizer": True}),
    "TP 4 with sequence parallel": (4, {"tensor": 4, "sequence": True}),
}


@pytest.fixture(scope="module")
def wide_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_packs(tmp_path_factory.mktemp("wide"), context=144)


@cache
def divided(pack: Path, processes: int) -> dict[str, list[float]]:
    """Losses of five steps: three micro-batches a step on one process, two or one on three."""
    cases = {name: layout for name, (size, layout) in BY_THREE.items() if size == processes}
    recipes = [_divisible(pack, layout) for layout in (cases or {"one process": {}}).values()]
    losses = run_processes(_all_losses, processes, recipes, 5)[0]
    return dict(zip(cases or ["one process"], losses, strict=True))


def _divisible(pack: Path, layout: dict) -> Recipe:
    return tiny_recipe(
        pack,
        pack.parent,
        parallel=layout,
        model=DIVISIBLE,
        data={"context": 144},
        batch={"size": 6, "micro_size": 2},
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_THREE)
def test_same_losses_over_three_ranks_and_four(wide_pack: Path, name: str) -> None:
    alone = divided(wide_pack, 1)["one process"]
    together = divided(wide_pack, BY_THREE[name][0])[name]
    assert alone[-1] < 0.95 * alone[0], "the steps must move the weights"
    assert together == pytest.approx(alone, rel=1e-4)
