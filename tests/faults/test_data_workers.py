"""Processes that read data ahead die, or never begin."""

import contextlib
import itertools
import os
import signal
import time

import psutil
import pytest
from support.faults import Job, losses, run_job

from emu3_megatron.runs.status import status


def test_a_killed_data_worker_is_named_in_status(recipe):
    """Of a rank that is not the first, which is the one that speaks."""
    recipe = recipe(run={"steps": 2000, "save_every": 2000}, data={"workers": 1})
    job = Job(recipe, ranks=2)
    rows = recipe.run.dir / "metrics.jsonl"
    job.until(lambda: rows.exists() and rows.stat().st_size)
    (worker,) = psutil.Process(job.processes[1].pid).children()
    worker.kill()
    ends = job.wait(60)

    assert [end.code for end in ends] == [1, 1]
    line = status(recipe.run.dir)[0]
    assert "on rank 1: RuntimeError: DataLoader worker (pid" in line
    assert str(worker.pid) in line


def the_first_data_workers_never_begin(count=1):
    """As if they waited for ever for a lock that a thread of their parent held."""
    with contextlib.suppress(ImportError):
        from emu3_megatron.data import reading_ahead

        reading_ahead._SECONDS_TO_BEGIN = 0.5
    number = itertools.count(1)
    current = 0

    def take_a_number():
        nonlocal current
        current = next(number)

    def hang():
        if current <= count:
            time.sleep(600)

    os.register_at_fork(before=take_a_number, after_in_child=hang)


def test_a_data_worker_that_never_begins_is_replaced(recipe, untroubled):
    recipe = recipe(run={"save_every": 99, "hang_seconds": 10.0}, data={"workers": 2})
    (end,) = run_job(recipe, fault=the_first_data_workers_never_begin)

    assert end.code == 0, end.said
    assert losses(recipe.run.dir) == pytest.approx(losses(untroubled), rel=1e-5)


def three_data_workers_never_begin():
    the_first_data_workers_never_begin(count=3)


def test_data_workers_that_never_begin_end_the_run(recipe):
    recipe = recipe(data={"workers": 1})
    (end,) = run_job(recipe, fault=three_data_workers_never_begin)

    assert end.code == 1, end.said
    assert "3 times a data worker did not begin; data.workers=0 needs none" in end.said


def rank_1_dies_before_it_meets_the_others():
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_rank_that_waits_at_the_start_for_a_dead_one_ends(recipe):
    recipe = recipe(run={"hang_seconds": 2.0})
    first, _ = run_job(recipe, ranks=2, fault=rank_1_dies_before_it_meets_the_others)

    assert first.code == 77, first.said
    assert "rank 0: waited 2 seconds, run.hang_seconds, at the start for the other" in first.said
