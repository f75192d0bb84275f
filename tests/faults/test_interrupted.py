"""Ctrl-C saves as SIGTERM does, and leaves at once the second time."""

import os
import signal
import time

import pytest
from support.faults import Job, latest, losses, run_job

from emu3_megatron.runs.heartbeats import read_heartbeats
from emu3_megatron.runs.status import status
from emu3_megatron.training.trainer import DecoderTrainer


def in_step_3(action):
    step = DecoderTrainer.step

    def acting(self, number, *arguments):
        if number == 3:
            action()
        return step(self, number, *arguments)

    DecoderTrainer.step = acting


def rank_1_hears_ctrl_c_in_step_3():
    if os.environ["RANK"] == "1":
        in_step_3(lambda: os.kill(os.getpid(), signal.SIGINT))


def test_ctrl_c_at_one_rank_makes_all_save_at_the_same_step(recipe, untroubled):
    recipe = recipe()
    ends = run_job(recipe, ranks=2, fault=rank_1_hears_ctrl_c_in_step_3)
    folder = recipe.run.dir

    assert [end.code for end in ends] == [130, 130], ends[0].said
    assert latest(folder) == 3
    assert "Traceback" not in ends[0].said + ends[1].said
    assert status(folder)[0].endswith("not running; interrupted, start it again")

    (end,) = run_job(recipe)

    assert end.code == 0, end.said
    assert losses(folder) == pytest.approx(losses(untroubled), rel=1e-5)


def stand_still_in_step_3():
    in_step_3(lambda: time.sleep(60))


def test_a_second_ctrl_c_leaves_at_once(recipe):
    """All processes of a terminal hear it, those that read ahead too."""
    recipe = recipe(run={"save_every": 99}, data={"workers": 1})
    job = Job(recipe, fault=stand_still_in_step_3)
    job.until(lambda: any(beat["step"] == 3 for beat in read_heartbeats(recipe.run.dir)), 30)
    for pause in (1.2, 0):
        for process in [*job.descendants(), *job.processes]:
            os.kill(process.pid, signal.SIGINT)
        time.sleep(pause)
    (end,) = job.wait(20)

    assert end.code == 130, end.said
    assert "Ctrl-C: leaving as soon as this step is saved; again: at once" in end.said
    assert status(recipe.run.dir)[0].endswith("not running; interrupted, not saved, start it again")
