"""Runs that take longer than `run.hang_seconds` over one thing, and get on all the while."""

import os
import shutil
import signal
import time

import pytest
from support.faults import Job, losses, run_job, slowed, steps_of

from emu3_megatron import manifest
from emu3_megatron.runs.heartbeats import read_heartbeats
from emu3_megatron.runs.hooks.saving import SaveCheckpoints
from emu3_megatron.runs.interfaces import Hook

LIMIT = 2.0  # seconds without progress


def the_checkpoint_lies_on_a_slow_disk():
    """Each of its files takes nearly a second, and each of its tensors a while."""
    from torch.distributed.checkpoint import DefaultLoadPlanner

    from emu3_megatron.parallel import mesh

    mesh._TIMEOUT = mesh.timedelta(seconds=3)  # torch's own patience is over before too
    slowed(manifest, "_fault", 0.8)
    slowed(DefaultLoadPlanner, "commit_tensor", 0.04)


def test_a_slow_start_ends_no_run(recipe, untroubled):
    recipe = recipe(run={"steps": 9, "hang_seconds": LIMIT})
    shutil.copytree(untroubled, recipe.run.dir)

    ends = run_job(recipe, ranks=2, fault=the_checkpoint_lies_on_a_slow_disk)

    assert [end.code for end in ends] == [0, 0], ends[0].said
    assert steps_of(recipe.run.dir)[-2:] == [8, 9]


def the_first_rank_writes_to_a_slow_disk():
    """Each of its tensors takes a while; the other rank waits for it."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    if os.environ["RANK"] == "0":
        slowed(filesystem_async, "_write_item", 0.06)


@pytest.mark.slow
def test_a_slow_last_save_ends_no_run(recipe):
    recipe = recipe(run={"steps": 2, "save_every": 9, "hang_seconds": LIMIT})
    ends = run_job(recipe, ranks=2, fault=the_first_rank_writes_to_a_slow_disk)

    assert [end.code for end in ends] == [0, 0], ends[0].said
    assert steps_of(recipe.run.dir) == [2]


def a_picture_takes_long():
    from support.tiny import VOCABULARY

    from emu3_megatron.generation.generator import Generator
    from emu3_megatron.generation.images import VisionPrompt, draw
    from emu3_megatron.generation.sampling import SamplingSettings
    from emu3_megatron.grammar import Meta
    from emu3_megatron.training import stage

    class Draw(Hook):
        name, order = "sampling", 100

        def after_step(self, run, step, result, is_last):
            with run.trainer.engine.decoder() as decoder:
                draw(
                    decoder, VOCABULARY, [VisionPrompt("a cat", Meta(4, 4))], SamplingSettings(1.0)
                )

    slowed(Generator, "step", 0.16)
    assemble = stage._assemble
    stage._assemble = lambda *arguments: assemble(*arguments[:-1], [Draw()])


@pytest.mark.slow
def test_a_large_picture_ends_no_run(recipe):
    recipe = recipe(run={"steps": 2, "stop_after": 1, "hang_seconds": LIMIT})
    (end,) = run_job(recipe, fault=a_picture_takes_long)

    assert end.code == 0, end.said


def test_a_job_that_was_suspended_goes_on(recipe, untroubled):
    """Slurm's suspend, or Ctrl-Z and fg: all its processes stop and go on."""
    recipe = recipe(run={"hang_seconds": LIMIT})
    job = Job(recipe, ranks=2, fault=steps_take_a_while)
    job.until(lambda: any(b["step"] > 2 for b in read_heartbeats(recipe.run.dir)))
    for process in job.processes:
        os.kill(process.pid, signal.SIGSTOP)
    time.sleep(2 * LIMIT)
    for process in job.processes:
        os.kill(process.pid, signal.SIGCONT)
    ends = job.wait()

    assert {end.code for end in ends} == {0}, ends[0].said
    assert losses(recipe.run.dir) == pytest.approx(losses(untroubled), rel=1e-5)


def steps_take_a_while():
    slowed(SaveCheckpoints, "after_step", 0.2)
