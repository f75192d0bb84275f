"""Whole runs on DeepSpeed: resuming, bad steps, and what others read of their checkpoints."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.engines import on_deepspeed
from support.faults import events, losses, run_job, spoil
from support.processes import run_processes
from support.steps import start
from support.tiny import CONTEXT, make_packs, tiny_recipe

from emu3_megatron import parallel
from emu3_megatron.checkpoints.folders import find_checkpoint
from emu3_megatron.config import Recipe
from emu3_megatron.model import Inputs, SequenceLayout
from emu3_megatron.model.opening import open_decoder
from emu3_megatron.runs.interfaces import Verdict

pytestmark = pytest.mark.slow

TOKENS = torch.arange(CONTEXT)[None] % 256


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_packs(tmp_path_factory.mktemp("packs"))


def recipe_of(
    pack: Path, folder: Path, run: dict[str, Any] | None = None, **sections: Any
) -> Recipe:
    run = {"steps": 6, "save_every": 2, "keep": 9, **(run or {})}
    return tiny_recipe(pack, folder, run=run, **sections)


def train(recipe: Recipe, ranks: int = 2) -> dict[int, float]:
    """Losses by step; a run that stops halfway goes on at the next call."""
    for end in run_job(recipe, ranks=ranks):
        assert end.code == 0, end.said
    return losses(recipe.run.dir)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"stage": 2}, {"stage": 3}),
        ({"stage": 3}, {"stage": 1, "offload": "optimizer"}),
        ({"stage": 3, "offload": "weights"}, {"stage": 0}),
        ({"stage": 0}, {"stage": 2, "offload": "optimizer"}),
    ],
    ids=["2 to 3", "3 to 1 offloaded", "3 offloaded to 0", "0 to 2 offloaded"],
)
def test_a_run_goes_on_at_another_stage_and_number_of_ranks(pack, tmp_path, first, then):
    straight = train(recipe_of(pack, tmp_path / "straight", **on_deepspeed(**first)))
    train(recipe_of(pack, tmp_path / "run", {"stop_after": 2}, **on_deepspeed(**first)))

    resumed = train(recipe_of(pack, tmp_path / "run", **on_deepspeed(**then)), ranks=1)

    assert resumed == pytest.approx(straight, abs=1e-5)
    assert len(resumed) == 6


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_in_bf16_the_fp32_weights_go_on_too(pack, tmp_path, stage):
    of = lambda name, **run: recipe_of(
        pack, tmp_path / name, run, precision="bf16", **on_deepspeed(stage=stage)
    )
    straight = train(of("straight"))
    train(of("run", stop_after=4))

    assert train(of("run")) == pytest.approx(straight, abs=1e-6)


def skipping(recipe: Recipe, skipped: bool) -> list[float]:
    """Losses of three steps; with `skipped` there is one before the second that is judged bad."""
    steps = start(recipe)
    batches = list(steps.data.batches(steps, 0, 4))
    take = lambda number, batch, verdict: steps.trainer.step(number, batch, lambda values: verdict)
    found = [take(1, batches[0], Verdict())]
    if skipped:
        before = weights(steps.engine)
        take(2, batches[3], Verdict(trouble="a spike"))
        for name, tensor in weights(steps.engine).items():
            assert torch.equal(tensor, before[name]), name
    found += [take(number, batches[number - 1], Verdict()) for number in (2, 3)]
    parallel.stop(keep_processes=True)
    return [result.metrics["loss"] for result in found]


def weights(engine: Any) -> dict[str, torch.Tensor]:
    parts = engine.weights.for_checkpoint(engine._whole_weight)
    return {
        f"{name} {number}": piece.data.clone()
        for name, pieces in parts.items()
        if isinstance(pieces, list)
        for number, piece in enumerate(pieces)
    }


@pytest.mark.parametrize(
    ("stage", "offload", "precision"),
    [
        *((stage, "none", "fp32") for stage in (0, 1, 2, 3)),
        *((stage, "none", "bf16") for stage in (1, 2, 3)),
        *((stage, "optimizer", "fp32") for stage in (1, 2, 3)),
    ],
)
def test_nothing_stays_of_a_step_that_is_left_out(pack, tmp_path, stage, offload, precision):
    recipe = recipe_of(
        pack, tmp_path, precision=precision, **on_deepspeed(stage=stage, offload=offload)
    )
    with_bad = run_processes(skipping, 2, recipe, True)[0]
    without = run_processes(skipping, 2, recipe, False)[0]

    assert with_bad == without


def our_logits(checkpoint: Path) -> np.ndarray:
    mesh = parallel.start()
    mesh.seed(0, 0)
    decoder, _ = open_decoder(checkpoint, mesh)
    positions = torch.arange(CONTEXT)[None]
    inputs = Inputs(TOKENS, positions, SequenceLayout.of_documents([[0, CONTEXT]]))
    with torch.no_grad():
        return decoder(inputs, "logits").numpy()


def their_logits(folder: Path) -> np.ndarray:
    from transformers import Emu3ForCausalLM

    with torch.no_grad():
        return Emu3ForCausalLM.from_pretrained(folder, dtype=torch.float32)(TOKENS).logits.numpy()


@pytest.mark.parametrize("stage", [0, 3])
def test_checkpoints_and_the_exported_folder_hold_the_same_model(pack, tmp_path, stage):
    export = {"export": str(tmp_path / "exported")}
    recipe = recipe_of(pack, tmp_path / "run", export, **on_deepspeed(stage=stage))
    train(recipe)
    (expected,) = run_processes(our_logits, 1, tmp_path / "run")

    found = their_logits(tmp_path / "exported")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert (tmp_path / "exported" / "tokenizer.json").is_file()
    assert not (tmp_path / "exported" / "adapter").exists()


def test_both_engines_start_from_each_others_weights(pack, tmp_path):
    export = {"export": str(tmp_path / "exported")}
    train(recipe_of(pack, tmp_path / "first", export, **on_deepspeed(stage=2)))
    of = lambda name, start, **engine: recipe_of(
        pack, tmp_path / name, {"init_from": str(tmp_path / start), "steps": 2}, **engine
    )
    expected = train(of("megatron", "first"))

    assert train(of("folder", "exported", **on_deepspeed(stage=3))) == pytest.approx(
        expected, abs=1e-5
    )
    assert train(of("checkpoint", "first", **on_deepspeed(stage=2))) == pytest.approx(
        expected, abs=1e-5
    )
    manifest = find_checkpoint(tmp_path / "folder") / "manifest.json"
    assert json.loads(manifest.read_text(encoding="utf-8"))["max_positions"] >= CONTEXT


def test_held_out_losses_are_those_of_megatron(pack, tmp_path):
    other = make_packs(tmp_path, seed=5)
    validation = {"every": 3, "batches": 2, "sources": [{"pack": str(other)}]}
    rows = []
    for name, engine in (("megatron", {}), ("deepspeed", on_deepspeed(stage=3))):
        recipe = recipe_of(pack, tmp_path / name, validation=validation, **engine)
        train(recipe)
        lines = (recipe.run.dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows.append([row for row in map(json.loads, lines) if any("validation" in k for k in row)])

    assert rows[0]
    for ours, theirs in zip(*rows, strict=True):
        losses = {k: v for k, v in ours.items() if k.startswith("validation") and "time" not in k}
        assert {k: theirs[k] for k in losses} == pytest.approx(losses, rel=1e-5)


def test_a_key_that_deepspeed_does_not_know_is_one_line(pack, tmp_path):
    engine = {"kind": "deepspeed", "zero": {"reduce_bucket": 5}}
    (end,) = run_job(recipe_of(pack, tmp_path / "run", engine=engine))

    assert end.code == 2
    assert "emu3: engine.zero.reduce_bucket: Extra inputs are not permitted" in end.said


def spike_in_step_7():
    spoil({7}, 1000.0)


def test_a_spike_goes_back_to_the_last_checkpoint(pack, tmp_path):
    found = {}
    for name, engine in (("megatron", {}), ("deepspeed", on_deepspeed(stage=3))):
        run = {"steps": 10, "save_every": 4}
        guard = {"spikes": "rollback", "window": 6, "threshold": 20.0}
        recipe = recipe_of(pack, tmp_path / name, run, guard=guard, **engine)
        for end in run_job(recipe, ranks=2, fault=spike_in_step_7):
            assert end.code == 0, end.said
        assert [(e["step"], e["to"]) for e in events(recipe.run.dir, "rolled back")] == [(7, 4)]
        found[name] = losses(recipe.run.dir)

    del found["megatron"][7], found["deepspeed"][7]
    assert found["deepspeed"] == pytest.approx(found["megatron"], abs=1e-4)


def test_the_precision_stays_within_a_run(pack, tmp_path):
    first = recipe_of(pack, tmp_path / "run", {"stop_after": 2}, **on_deepspeed(stage=1))
    train(first, ranks=1)
    again = recipe_of(pack, tmp_path / "run", precision="bf16", **on_deepspeed(stage=1))
    (end,) = run_job(again, accept=True)

    assert end.code == 2
    assert "precision: fp32 → bf16: engine deepspeed cannot change it within a run" in end.said
