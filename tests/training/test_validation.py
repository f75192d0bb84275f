"""Held-out loss: of the same documents every time, equal in every layout, without a trace."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.batches import reader, setting_of
from support.faults import run_job
from support.processes import run_processes
from support.steps import losses, start
from support.tiny import CONTEXT, make_packs, tiny_recipe

from emu3_megatron import parallel
from emu3_megatron.config import Recipe
from emu3_megatron.data.held_out import HeldOut
from emu3_megatron.data.mixed import MixtureData
from emu3_megatron.errors import InputError
from emu3_megatron.training.evaluator import HeldOutLoss


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Those to learn from and those held out."""
    folder = tmp_path_factory.mktemp
    return make_packs(folder("train")), make_packs(folder("held-out"), seed=1)


def recipe_of(packs: tuple[Path, Path], folder: Path, every=3, batches=1, **sections: Any):
    held_out = {"every": every, "batches": batches, "sources": [{"pack": str(packs[1])}]}
    return tiny_recipe(packs[0], folder, validation=held_out, **sections)


def open_held_out(recipe: Recipe) -> HeldOut:
    return HeldOut(recipe.validation, setting_of(recipe), recipe.data)


def held_out_loss(recipe: Recipe) -> dict[str, float]:
    """By the weights that a run begins with."""
    steps = start(recipe)
    trainer = steps.trainer
    evaluator = HeldOutLoss(trainer, trainer.engine.decoder, open_held_out(recipe), steps)
    measured = evaluator.measure(lambda: True)
    assert measured is not None
    parallel.stop(keep_processes=True)
    return measured


def rows(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def test_it_is_the_loss_of_a_first_step_on_the_same_packs_without_dropout(packs, tmp_path):
    dropping = recipe_of(packs, tmp_path, model={"dropout": 0.3})
    learning = tiny_recipe(packs[1], tmp_path)

    (first,) = run_processes(losses, 1, learning, 1)[0]
    (held_out,) = run_processes(held_out_loss, 1, dropping)

    assert held_out["loss"] == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize(
    "layout", [{"tensor": 2, "sequence": True}, {"context": 2}, {}], ids=["TP 2", "CP 2", "DP 2"]
)
def test_same_in_every_layout(packs, tmp_path, layout):
    (alone,) = run_processes(held_out_loss, 1, recipe_of(packs, tmp_path, batches=2))

    together = run_processes(
        held_out_loss, 2, recipe_of(packs, tmp_path, batches=2, parallel=layout)
    )

    assert alone["tokens_code"] > 0
    assert together[0] == together[1] == pytest.approx(alone, rel=1e-5)


def test_it_leaves_no_trace_in_training(packs, tmp_path):
    settings = {"run": {"steps": 5, "log_every": 1}, "model": {"dropout": 0.1}}
    with_it = recipe_of(packs, tmp_path / "with", every=2, **settings)
    without = tiny_recipe(packs[0], tmp_path / "without", **settings)
    for recipe in (with_it, without):
        assert [end.code for end in run_job(recipe)] == [0]

    learned = [row["loss"] for row in rows(with_it.run.dir) if "loss" in row]
    measured = [row["step"] for row in rows(with_it.run.dir) if "validation/nll_code" in row]
    assert learned == [row["loss"] for row in rows(without.run.dir)]
    assert measured == [2, 4, 5]


def test_the_documents_are_the_same_for_every_seed_of_a_run(packs, tmp_path):
    def documents(seed: int) -> list[Any]:
        data = open_held_out(recipe_of(packs, tmp_path, run={"seed": seed}))
        return [batch.documents for step in data.batches(reader()) for batch in step]

    assert documents(0) == documents(1)


def test_packs_that_would_be_read_twice_are_refused(packs, tmp_path):
    with pytest.raises(InputError, match=r"validation.batches=99 .* lower it, or pack more"):
        open_held_out(recipe_of(packs, tmp_path, batches=99))


def test_packs_of_another_context_are_refused(packs, tmp_path):
    recipe = recipe_of(packs, tmp_path, data={"context": 2 * CONTEXT})
    with pytest.raises(InputError, match=r"tiny.pack: packed for a context of 128"):
        open_held_out(recipe)


def test_packs_that_are_trained_on_are_not_held_out(packs, tmp_path):
    with pytest.raises(ValueError, match=r"tiny.pack is among data.sources; hold other packs out"):
        recipe_of((packs[0], packs[0]), tmp_path)


def test_packs_that_are_trained_on_are_known_wherever_they_lie(packs, tmp_path):
    shutil.copytree(packs[0].parent, tmp_path / "copy")
    recipe = recipe_of((packs[0], tmp_path / "copy" / packs[0].name), tmp_path)
    data = MixtureData(recipe.data, setting_of(recipe)).section

    with pytest.raises(InputError, match=r"copy/tiny.pack holds what data.sources hold; hold"):
        HeldOut(recipe.validation, setting_of(recipe), data)


def test_no_caption_is_taken_out_of_held_out_data(packs, tmp_path):
    found = []
    for share in (0, 1):
        held_out = open_held_out(recipe_of(packs, tmp_path, data={"null_prompt": share}))
        found.append([batch.tokens for step in held_out.batches(reader()) for batch in step])

    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
