"""DeepSpeed at every ZeRO stage computes the losses of the engine on Megatron-core."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from support.engines import dialogue_pack, losses_of_all, on_deepspeed
from support.pairs import CONTEXT, dpo_recipe, pack_pairs, pairs_of_images, save_start
from support.processes import run_processes
from support.tiny import make_packs, tiny_recipe

from emu3_megatron.config import Recipe

pytestmark = pytest.mark.slow

RANKS, STEPS = 2, 5
STAGES = ("pre-training", "instruction tuning", "DPO")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs")
    make_packs(folder)
    dialogue_pack(folder)
    pairs = pack_pairs(folder, "pairs", pairs_of_images(12))
    save_start(pairs, folder)
    return folder


def recipe_of(folder: Path, stage: str, **sections: Any) -> Recipe:
    run = folder / "run"
    if stage == "DPO":
        return dpo_recipe(folder / "pairs.pack", run, folder / "start", **sections)
    start = {"init_from": str(folder / "start")}
    if stage == "instruction tuning":
        values = {"data": {"context": CONTEXT}, **sections}
        weights = {"weights": {"code": 0, "structure": 1, "text": 1}}
        return tiny_recipe(folder / "dialogues.pack", run, run=start, objective=weights, **values)
    return tiny_recipe(folder / "tiny.pack", run, run=start, **sections)


@cache
def found(folder: Path, engine: str | int) -> dict[str, list[float]]:
    """The losses of all stages of training on one engine: Megatron's, or of a ZeRO stage."""
    chosen = {} if engine == "megatron" else on_deepspeed(stage=engine)
    recipes = [recipe_of(folder, stage, **chosen) for stage in STAGES]
    return dict(zip(STAGES, run_processes(losses_of_all, RANKS, recipes, STEPS)[0], strict=True))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_five_steps_have_the_losses_of_megatron(folder: Path, zero: int, stage: str):
    expected = found(folder, "megatron")[stage]

    assert found(folder, zero)[stage] == pytest.approx(expected, abs=1e-5)
    assert len(expected) == STEPS
    assert expected[-1] < expected[0] - 1e-3, "the steps must move the weights"


def test_accumulated_micro_batches_are_one_large_batch(folder: Path):
    """Users of BAAI's script met a crash at ZeRO 3 with accumulation (Emu3 issue 63)."""
    whole = recipe_of(folder, "pre-training", batch={"micro_size": 4}, **on_deepspeed(stage=0))
    parts = recipe_of(folder, "pre-training", batch={"micro_size": 1}, **on_deepspeed(stage=3))
    found = run_processes(losses_of_all, RANKS, [whole, parts], STEPS)[0]

    assert found[1] == pytest.approx(found[0], abs=1e-5)


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_activations_computed_again_change_no_loss(folder: Path, zero: int):
    again = recipe_of(folder, "pre-training", recompute="full", **on_deepspeed(stage=zero))
    (losses,) = run_processes(losses_of_all, RANKS, [again], STEPS)[0]

    assert losses == pytest.approx(found(folder, zero)["pre-training"], abs=1e-6)


@pytest.mark.parametrize(
    ("zero", "offload"), [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "weights")]
)
def test_what_lies_in_the_hosts_memory_changes_no_loss(folder: Path, zero: int, offload: str):
    chosen = on_deepspeed(stage=zero, offload=offload)
    recipes = [recipe_of(folder, stage, **chosen) for stage in STAGES]
    losses = run_processes(losses_of_all, RANKS, recipes, STEPS)[0]

    for stage, offloaded in zip(STAGES, losses, strict=True):
        assert offloaded == pytest.approx(found(folder, zero)[stage], abs=1e-6), stage


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_bf16_learns_as_fp32_does(folder: Path, zero: int):
    chosen = on_deepspeed(stage=zero)
    recipe = recipe_of(folder, "pre-training", precision="bf16", **chosen)
    (losses,) = run_processes(losses_of_all, RANKS, [recipe], STEPS)[0]

    assert losses == pytest.approx(found(folder, "megatron")["pre-training"], rel=2e-3)
