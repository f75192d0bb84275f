"""Steps that must not move the weights."""

import json
import math

from support.faults import events, latest, losses, run_job, spoil, steps_of, weights

from emu3_megatron.runs.hooks.guard import z_score


def nan_on_rank_1_in_step_5():
    spoil({5}, math.nan, on_rank=1)


def nan_from_step_5_on():
    spoil(range(5, 99), math.nan)


def spike_in_step_7():
    spoil({7}, 1000.0)


def test_nan_on_one_rank_makes_all_ranks_skip_and_moves_no_bit(recipe):
    recipe = recipe(run={"save_every": 1, "save_in_background": False}, batch={"micro_size": 2})
    ends = run_job(recipe, ranks=2, fault=nan_on_rank_1_in_step_5)
    folder = recipe.run.dir

    assert [end.code for end in ends] == [0, 0], ends[0].said
    assert [event["step"] for event in events(folder, "skipped")] == [5]
    checkpoints = folder / "checkpoints"
    assert weights(checkpoints / "step-00000005") == weights(checkpoints / "step-00000004")
    assert weights(checkpoints / "step-00000006") != weights(checkpoints / "step-00000005")
    found = json.loads((folder / "skipped" / "step-00000005.json").read_text(encoding="utf-8"))
    assert found["reason"] == "not finite"
    first, second = (
        [micro_batch["loss"] for micro_batch in rank["micro_batches"]] for rank in found["ranks"]
    )
    assert "nan" not in first
    assert set(second) == {"nan"}
    documents = found["ranks"][1]["micro_batches"][0]["documents"]
    assert len(documents) == 2, "a list of documents for each row"
    prefix, number = documents[0][0]
    assert prefix.endswith("shard")
    assert number >= 0


def test_bad_steps_in_a_row_end_the_run_with_a_code_of_their_own(recipe):
    recipe = recipe(run={"steps": 20}, guard={"patience": 3})
    (end,) = run_job(recipe, fault=nan_from_step_5_on)

    assert end.code == 76
    assert "step 7 was bad (not finite), 3 in a row" in end.said
    assert [event["step"] for event in events(recipe.run.dir, "skipped")] == [5, 6, 7]
    assert latest(recipe.run.dir) in (4, 6)


def test_a_spike_is_skipped(recipe, untroubled):
    recipe = recipe(guard={"spikes": "skip", "window": 6, "threshold": 20.0})
    (end,) = run_job(recipe, fault=spike_in_step_7)

    assert end.code == 0, end.said
    assert [event["step"] for event in events(recipe.run.dir, "skipped")] == [7]
    seen, calm = losses(recipe.run.dir), losses(untroubled)
    assert [seen[step] for step in range(1, 7)] == [calm[step] for step in range(1, 7)]
    assert seen[8] != calm[8]


def test_a_spike_rolls_back_to_the_last_checkpoint_and_passes_over_the_window(recipe):
    settings = {"spikes": "rollback", "window": 6, "threshold": 20.0}
    recipe = recipe(
        run={"save_every": 4, "stop_after": 7},
        guard=settings,
    )
    (end,) = run_job(recipe, fault=spike_in_step_7)
    folder = recipe.run.dir

    assert end.code == 0, end.said
    assert [(e["step"], e["to"]) for e in events(folder, "rolled back")] == [(7, 4)]
    checkpoints = folder / "checkpoints"
    assert steps_of(folder) == [4, 7]
    assert weights(checkpoints / "step-00000007") == weights(checkpoints / "step-00000004")


def test_a_run_killed_after_a_spike_judges_as_if_it_had_not_been(recipe, tmp_path):
    guard = {"spikes": "skip", "window": 6, "threshold": 20.0}
    straight = recipe(guard=guard)
    run_job(straight, fault=spike_in_step_7)
    stopped = recipe(guard=guard, run={"dir": str(tmp_path / "stopped"), "stop_after": 6})
    run_job(stopped, fault=spike_in_step_7)
    going_on = recipe(guard=guard, run={"dir": str(tmp_path / "stopped")})
    run_job(going_on, fault=spike_in_step_7)

    assert events(going_on.run.dir, "skipped") != []
    assert losses(going_on.run.dir) == losses(straight.run.dir)


def nan_in_step_3():
    spoil({3}, math.nan)


def test_a_resumed_run_goes_on_counting_skipped_steps(recipe):
    run_job(recipe(run={"stop_after": 4}), fault=nan_in_step_3)
    (end,) = run_job(recipe())

    assert end.code == 0, end.said
    rows = [
        json.loads(line) for line in (recipe().run.dir / "metrics.jsonl").open(encoding="utf-8")
    ]
    assert [row["skipped_steps"] for row in rows] == [0, 0, 1, 1, 1, 1, 1, 1]


def test_bad_steps_in_a_row_are_counted_over_a_resume(recipe):
    guard = {"patience": 3}
    run_job(recipe(run={"steps": 20, "stop_after": 6}, guard=guard), fault=nan_from_step_5_on)
    (end,) = run_job(recipe(run={"steps": 20}, guard=guard), fault=nan_from_step_5_on)

    assert end.code == 76
    assert "step 7 was bad (not finite), 3 in a row" in end.said


def test_a_flat_past_does_not_make_a_spike_of_noise():
    assert z_score(1.0005, [1.0] * 9) < 1
    assert z_score(2.0, [1.0] * 9) > 100


def test_the_score_is_that_of_a_normal_distribution():
    past = [-1.3, -0.6745, -0.2, 0.0, 0.2, 0.6745, 1.3]  # median 0, MAD 0.6745

    assert abs(z_score(3.0, past) - 3.0) < 1e-12
