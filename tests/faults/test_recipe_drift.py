"""Resuming under a changed recipe."""

import json
import shutil

import pytest
from support.faults import losses, run_job

from emu3_megatron import manifest
from emu3_megatron.config import Recipe


@pytest.fixture
def resumed(untroubled, recipe):
    """A function that resumes the run of eight steps under a changed recipe, to ten."""

    def run(accept=False, run=None, **sections):
        changed = recipe(run={"steps": 8, **(run or {})}, **sections)
        if not changed.run.dir.exists():
            shutil.copytree(untroubled, changed.run.dir)
        (end,) = run_job(changed, accept=accept)
        return end

    return run


def test_what_is_learned_may_not_change_unasked(resumed):
    end = resumed(optimizer={"lr": 3e-2})

    assert end.code == 2
    assert "the recipe changed since the checkpoint: optimizer.lr: 0.01 → 0.03; add --accept" in (
        end.said
    )


def test_an_accepted_learning_rate_is_the_one_that_steps_are_taken_at(resumed, recipe):
    changed = {"lr": 3e-2, "weight_decay": 0.2, "schedule": {"warmup_steps": 2, "steps": 20}}
    end = resumed(accept=True, run={"steps": 10}, optimizer=changed)

    assert end.code == 0, end.said
    assert "recipe changed: optimizer.lr: 0.01 → 0.03" in end.said
    rows = [
        json.loads(line) for line in (recipe().run.dir / "metrics.jsonl").open(encoding="utf-8")
    ]
    before, after = rows[7]["lr"], rows[8]["lr"]
    assert after > before


def test_a_longer_run_keeps_its_schedule_and_is_told_where_it_ends(resumed, recipe):
    end = resumed(run={"steps": 10})

    assert end.code == 0, end.said
    assert "recipe changed: run.steps: 8 → 10" in end.said
    assert (
        "steps after optimizer.schedule.steps=8 are taken at optimizer.schedule.min_lr=0.0"
        in end.said
    )
    rows = [
        json.loads(line) for line in (recipe().run.dir / "metrics.jsonl").open(encoding="utf-8")
    ]
    assert [row["lr"] for row in rows[8:]] == [0.0, 0.0]


def test_a_longer_schedule_goes_on_without_a_second_warm_up(resumed, recipe):
    wsd = {"kind": "wsd", "warmup_steps": 2, "cooldown_steps": 2, "steps": 20}
    end = resumed(accept=True, run={"steps": 10}, optimizer={"schedule": wsd})

    assert end.code == 0, end.said
    assert "recipe changed: optimizer.schedule: {'kind': 'cosine'," in end.said
    rows = [
        json.loads(line) for line in (recipe().run.dir / "metrics.jsonl").open(encoding="utf-8")
    ]
    assert [row["lr"] for row in rows[8:]] == [1e-2, 1e-2]


def test_a_warm_up_that_the_first_starts_length_does_not_hold_is_named(resumed):
    end = resumed(accept=True, run={"steps": 20}, optimizer={"schedule": {"warmup_steps": 9}})

    assert end.code == 2
    assert "optimizer.schedule.warmup_steps=9 is more than optimizer.schedule.steps=8" in end.said


def test_a_run_whose_recipe_has_the_keys_of_an_earlier_version_goes_on(resumed, recipe):
    assert resumed().code == 0
    checkpoint = recipe().run.dir / "checkpoints" / "step-00000008"
    about = manifest.read(checkpoint)
    schedule = about["recipe"]["optimizer"].pop("schedule")
    old = {"min_lr": 0.0, "warmup_steps": schedule["warmup_steps"], "decay_steps": 8}
    about["recipe"]["optimizer"] |= old
    manifest._write(checkpoint / "manifest.json", about)
    end = resumed(run={"steps": 10})

    assert end.code == 0, end.said
    assert "recipe changed: run.steps: 8 → 10" in end.said
    assert "optimizer" not in end.said.partition("recipe changed")[2].partition("run.steps=10")[0]


def test_the_distributed_optimizer_takes_a_new_learning_rate_too(recipe):
    distributed = {"parallel": {"distributed_optimizer": True}, "precision": "bf16"}
    run_job(recipe(run={"steps": 2}, **distributed))
    (end,) = run_job(recipe(run={"steps": 3}, optimizer={"lr": 3e-2}, **distributed), accept=True)

    assert end.code == 0, end.said


def test_how_fast_it_goes_may_change(resumed):
    end = resumed(run={"log_every": 2}, batch={"micro_size": 4}, recompute="full")

    assert end.code == 0, end.said
    assert "recipe changed: batch.micro_size: 2 → 4" in end.said


def test_the_batch_size_cannot_change_within_a_run(resumed):
    """Samples would no longer fit."""
    end = resumed(accept=True, batch={"size": 16})

    assert end.code == 2
    assert "cannot change within a run: batch.size: 8 → 16; choose another run.dir" in end.said


def test_the_precision_changes_when_it_is_accepted_and_the_optimizer_freely(resumed):
    changed = {"precision": "bf16", "parallel": {"distributed_optimizer": True}}
    refused = resumed(run={"steps": 9}, **changed)
    accepted = resumed(accept=True, run={"steps": 9}, **changed)

    assert refused.code == 2
    assert "since the checkpoint: precision: fp32 → bf16; add --accept" in refused.said
    assert accepted.code == 0, accepted.said
    assert "recipe changed: parallel.distributed_optimizer: False → True" in accepted.said


def test_another_engine_could_not_load_the_optimizers_states(resumed):
    end = resumed(accept=True, engine={"kind": "support.plain_engine:PlainTorch"})

    assert end.code == 2
    assert "cannot change within a run: engine: " in end.said
    assert "with run.init_from to keep the weights" in end.said


def test_data_of_another_kind_begins_anew(resumed, recipe):
    mixture = recipe()
    counting = {"kind": "support.extensions:Counting", "context": mixture.context}
    values = mixture.model_dump(mode="json") | {"data": counting}
    resumed()
    values["run"]["steps"] = 10
    (end,) = run_job(Recipe.model_validate(values), accept=True)

    assert end.code == 0, end.said
    state = json.loads((mixture.run.dir / "run.json").read_text(encoding="utf-8"))["data"]
    assert state == {"given": 0}, "what was given before step 9"


def test_a_hook_that_is_not_installed_any_more_is_named_in_one_line(resumed, recipe):
    assert resumed().code == 0
    checkpoint = recipe().run.dir / "checkpoints" / "step-00000008"
    about = manifest.read(checkpoint)
    about["recipe"]["hooks"] = [{"kind": "gone:Hook"}]
    manifest._write(checkpoint / "manifest.json", about)
    end = resumed(run={"steps": 10})

    assert end.code == 2
    (line,) = end.said.splitlines()
    assert "step-00000008: its recipe: hooks.0.kind: gone:Hook: cannot be imported" in line


def test_packs_that_changed_under_their_name_are_another_source(resumed, packs, recipe, tmp_path):
    copy = tmp_path / "tiny.pack"
    for path in packs.parent.iterdir():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    first = recipe(data={"sources": [{"pack": str(copy)}]}, run={"stop_after": 2})
    (end,) = run_job(first)
    assert end.code == 0, end.said
    header = json.loads((copy / "pack.json").read_text(encoding="utf-8"))
    (copy / "pack.json").write_text(json.dumps({**header, "seed": 1}), encoding="utf-8")
    second = recipe(data={"sources": [{"pack": str(copy)}]}, run={"stop_after": 4})
    (end,) = run_job(second)
    (accepted,) = run_job(second, accept=True)

    assert end.code == 2
    assert "the recipe changed since the checkpoint: data.sources.0.content: " in end.said
    assert accepted.code == 0, accepted.said
    phases = json.loads((second.run.dir / "run.json").read_text(encoding="utf-8"))["data"]["phases"]
    assert [phase["first_sequence"] for phase in phases] == [0, 2 * 8]


def test_packs_that_moved_are_the_same_source(resumed, packs, recipe, tmp_path):
    shutil.copytree(packs.parent, tmp_path / "elsewhere")
    moved = str(tmp_path / "elsewhere" / packs.name)
    end = resumed(run={"steps": 10}, data={"sources": [{"pack": moved}]})

    assert end.code == 0, end.said
    assert "recipe changed: data.sources.0.pack: " in end.said
    (phase,) = json.loads((recipe().run.dir / "run.json").read_text(encoding="utf-8"))["data"][
        "phases"
    ]
    assert phase["sources"][0]["section"]["pack"] == moved


def test_moved_packs_are_not_read_again(untroubled, packs, recipe, tmp_path):
    """Though something else was accepted along with the move."""
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(packs.parent, here)
    of = lambda folder: {"sources": [{"pack": str(folder / packs.name)}]}
    (end,) = run_job(recipe(run={"stop_after": 4}, data=of(here)))
    assert end.code == 0, end.said
    here.rename(there)
    (end,) = run_job(recipe(data=of(there), optimizer={"epsilon": 1.1e-8}), accept=True)

    assert end.code == 0, end.said
    assert losses(recipe().run.dir) == pytest.approx(losses(untroubled), rel=1e-4)
    phases = json.loads((recipe().run.dir / "run.json").read_text(encoding="utf-8"))["data"]
    assert len(phases["phases"]) == 1
