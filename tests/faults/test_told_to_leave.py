"""SIGTERM and SIGUSR1: all ranks save at the same step and leave to be started again."""

import os
import signal
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from support.faults import Job, events, latest, losses, run_job
from support.tiny import make_packs

from emu3_megatron.evaluation.samples import DrawSamples
from emu3_megatron.runs.hooks.saving import SaveCheckpoints
from emu3_megatron.runs.interfaces import Hook, StepResult, Verdict
from emu3_megatron.runs.status import status
from emu3_megatron.training.evaluator import HeldOutLoss
from emu3_megatron.training.trainer import DecoderTrainer


def once_in(owner, name, step_of, step, action):
    """Before a method runs for a step, do something."""
    method = getattr(owner, name)

    def acting(self, *arguments, **settings):
        if step_of(arguments) == step:
            action()
        return method(self, *arguments, **settings)

    setattr(owner, name, acting)


def tell(number):
    """This rank alone is told, in the middle of what it does."""
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), number)


def term_during_step_3():
    once_in(DecoderTrainer, "step", lambda a: a[0], 3, lambda: tell(signal.SIGTERM))


def usr1_during_step_3():
    once_in(DecoderTrainer, "step", lambda a: a[0], 3, lambda: tell(signal.SIGUSR1))


def term_during_the_save_of_step_2():
    once_in(SaveCheckpoints, "_request", lambda a: a[1], 2, lambda: tell(signal.SIGTERM))


def term_in_an_evaluation():
    once_in(HeldOutLoss, "_sums", lambda a: 0, 0, lambda: tell(signal.SIGTERM))


def term_while_sampling_after_step_2():
    from emu3_megatron.training import stage

    class SlowSampling(Hook):
        name, order = "sampling", DrawSamples.order

        def after_step(self, run, step, result, is_last):
            if step == 2:
                tell(signal.SIGTERM)
                time.sleep(0.3)

    assemble = stage._assemble
    stage._assemble = lambda *arguments: assemble(*arguments[:-1], [SlowSampling()])


@pytest.mark.parametrize(
    "fault",
    [
        term_during_step_3,
        usr1_during_step_3,
        term_during_the_save_of_step_2,
        term_while_sampling_after_step_2,
    ],
)
def test_a_signal_at_one_rank_makes_all_save_at_the_same_step(fault, recipe, untroubled):
    recipe = recipe()
    ends = run_job(recipe, ranks=2, fault=fault)
    folder = recipe.run.dir

    assert [end.code for end in ends] == [75, 75], ends[0].said
    assert latest(folder) == 3
    assert [event["step"] for event in events(folder, "left")] == [3]
    assert status(folder)[0].endswith("not running; told to leave, start it again")

    (end,) = run_job(recipe)

    assert end.code == 0, end.said
    assert losses(folder) == pytest.approx(losses(untroubled), rel=1e-5)


def test_a_signal_in_an_evaluation_gives_it_up_and_all_save_at_the_same_step(
    recipe, untroubled, tmp_path
):
    held_out = [{"pack": str(make_packs(tmp_path, seed=1))}]
    recipe = recipe(validation={"every": 2, "batches": 2, "sources": held_out})
    ends = run_job(recipe, ranks=2, fault=term_in_an_evaluation)
    folder = recipe.run.dir

    assert [end.code for end in ends] == [75, 75], ends[0].said
    assert latest(folder) == 3
    assert "validation/loss" not in (folder / "metrics.jsonl").read_text(encoding="utf-8")

    (end,) = run_job(recipe)

    assert end.code == 0, end.said
    assert losses(folder) == pytest.approx(losses(untroubled), rel=1e-5)
    assert (folder / "metrics.jsonl").read_text(encoding="utf-8").count("validation/loss") == 3


def test_writers_and_readers_outlive_the_signal_that_their_rank_was_sent(recipe):
    """Slurm sends its signal to every process of a job."""
    recipe = recipe(run={"steps": 400, "save_every": 10}, data={"workers": 1})
    job = Job(recipe, fault=writers_take_half_a_second)
    job.until(lambda: events(recipe.run.dir, "requested"))
    for process in [*job.descendants(), *job.processes]:
        os.kill(process.pid, signal.SIGTERM)
    (end,) = job.wait()

    assert end.code == 75, end.said
    assert events(recipe.run.dir, "save failed") == []
    assert events(recipe.run.dir, "durable")[0]["step"] == 10


def writers_take_half_a_second():
    from emu3_megatron.checkpoints import writer

    write_bucket = writer._write_bucket

    def slow(*arguments):
        time.sleep(0.5)
        return write_bucket(*arguments)

    writer._write_bucket = slow


@pytest.mark.parametrize(("leaves", "drawn"), [(False, [1]), (True, [])])
def test_a_run_that_is_told_to_leave_draws_no_samples_first(leaves, drawn, recipe):
    cat = {"caption": "a cat", "height": 2, "width": 2}
    recipe = recipe(sample={"every": 1, "tokenizer": "none", "prompts": [cat]})
    steps = []
    hook = object.__new__(DrawSamples)
    hook.config, hook.draw = recipe.sample, lambda *arguments: None
    run = SimpleNamespace(
        folder=recipe.run.dir,
        about={},
        log=SimpleNamespace(show=lambda step, images: steps.append(step)),
        trainer=SimpleNamespace(engine=SimpleNamespace(decoder=nullcontext)),
        try_to_write=lambda *arguments: {},
    )

    hook.after_step(run, 1, StepResult({}, Verdict(leaves=leaves)), is_last=True)

    assert steps == drawn
