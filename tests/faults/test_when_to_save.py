"""Saving by the clock and before Slurm's time is over, what is kept, and a loss that stays high."""

import os
import time

import pytest
from support.faults import events, latest, run_job, steps_of

from emu3_megatron.runs.signals import leaving_time
from emu3_megatron.runs.status import status


def rank_1_is_in_a_job_of_slurm_that_ends():
    """Clocks of hosts differ: one is the first to find the time over."""
    if os.environ["RANK"] == "1":
        os.environ["SLURM_JOB_END_TIME"] = str(int(time.time()))


def test_a_job_of_slurm_saves_and_leaves_before_its_time_is_over(recipe):
    recipe = recipe()
    ends = run_job(recipe, ranks=2, fault=rank_1_is_in_a_job_of_slurm_that_ends)

    assert [end.code for end in ends] == [75, 75], ends[0].said
    assert latest(recipe.run.dir) == 1


@pytest.mark.parametrize(
    ("minutes", "begin", "end", "leaves"),
    [
        (5.0, "0", "7200", 7200 - 300),
        (5.0, "0", "600", 600 - 150),  # a short job: a quarter of its time
        (None, "0", "7200", None),
        (5.0, "", "", None),
    ],
)
def test_when_a_job_of_slurm_leaves(minutes, begin, end, leaves, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_START_TIME", begin)
    monkeypatch.setenv("SLURM_JOB_END_TIME", end)

    assert leaving_time(minutes) == leaves


def the_clock_of_rank_1_says_so():
    from emu3_megatron.runs.hooks.saving import SaveCheckpoints

    if os.environ["RANK"] == "0":
        SaveCheckpoints.is_due_by_the_clock = lambda self: False


def test_checkpoints_are_saved_by_the_clock_of_any_rank(recipe):
    recipe = recipe(run={"steps": 3, "save_every": 99, "save_minutes": 1e-6})
    ends = run_job(recipe, ranks=2, fault=the_clock_of_rank_1_says_so)

    assert [end.code for end in ends] == [0, 0], ends[0].said
    assert steps_of(recipe.run.dir) == [1, 2, 3]


def test_checkpoints_of_every_so_many_steps_are_kept(recipe):
    recipe = recipe(run={"save_every": 1, "keep": 1, "keep_every": 3})
    (end,) = run_job(recipe)

    assert end.code == 0, end.said
    assert steps_of(recipe.run.dir) == [3, 6, 8]


def test_a_loss_that_stays_where_it_was_is_said(recipe):
    batch = {"size": 2, "micro_size": 2}
    optimizer = {"lr": 10.0, "schedule": {"warmup_steps": 2}}
    recipe = recipe(run={"steps": 26, "save_every": 99}, batch=batch, optimizer=optimizer)
    (end,) = run_job(recipe)

    assert end.code == 0, end.said
    (event,) = events(recipe.run.dir, "no lower loss")
    assert event["loss"] > 0.98 * event["start"]
    assert "nothing is learned, or it is lost; lower optimizer.lr" in end.said
    assert "no lower loss: 1 times" in " ".join(status(recipe.run.dir))
