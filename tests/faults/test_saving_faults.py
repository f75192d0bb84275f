"""A job dies, or its disk does, while a checkpoint is being written."""

import errno
import itertools
import os
import signal
import time

import psutil
import pytest
from support.faults import Job, events, latest, losses, run_job, steps_of, weights

from emu3_megatron.checkpoints import saving, writer


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_the_write_of_step_6() -> None:
    """The rank dies while its writer is at work."""
    from emu3_megatron.runs.hooks import saving as hook

    write_bucket, request = writer._write_bucket, saving.request_checkpoint

    def slow(*arguments):
        time.sleep(2)
        return write_bucket(*arguments)

    def then_die(folder, step, *arguments):
        if step == 6:
            writer._write_bucket = slow
        pending = request(folder, step, *arguments)
        if step == 6:
            die()
        return pending

    hook.request_checkpoint = then_die


def die_before_the_commit_of_step_6() -> None:
    commit = saving.manifest.commit

    def then_die(beside, target, about, *rest):
        if about["step"] == 6:
            die()
        commit(beside, target, about, *rest)

    saving.manifest.commit = then_die


def die_before_the_tracker_moves_to_step_6() -> None:
    move = saving.move_tracker

    def then_die(target):
        if target.name == "step-00000006":
            die()
        move(target)

    saving.move_tracker = then_die


@pytest.mark.parametrize(
    ("fault", "is_renamed"),
    [
        (die_in_the_write_of_step_6, False),
        (die_before_the_commit_of_step_6, False),
        (die_before_the_tracker_moves_to_step_6, True),
    ],
)
def test_a_kill_while_saving_leaves_the_previous_checkpoint_to_resume_from(
    fault, is_renamed, recipe, untroubled
):
    recipe = recipe(run={"save_in_background": False})
    (end,) = run_job(recipe, fault=fault)
    folder = recipe.run.dir

    assert end.code == -signal.SIGKILL
    assert latest(folder) == 4
    assert (6 in steps_of(folder)) is is_renamed
    unfinished = list((folder / "checkpoints").glob(".step-00000006.*.tmp"))
    assert (unfinished == []) is is_renamed

    (end,) = run_job(recipe)

    assert end.code == 0, end.said
    assert list((folder / "checkpoints").glob(".*.tmp")) == []
    last = "checkpoints/step-00000008"
    assert weights(folder / last) == weights(untroubled / last)


@pytest.mark.parametrize(("victim", "workers"), [(0, 0), (1, 1)])
def test_a_killed_rank_leaves_no_process_behind_and_ends_the_others(victim, workers, recipe):
    recipe = recipe(run={"steps": 400, "save_every": 50}, data={"workers": workers})
    job = Job(recipe, ranks=2, fault=slow_writers)
    job.until(lambda: events(recipe.run.dir, "requested"))
    job.until(lambda: len(job.descendants()) == 2 * (1 + workers))
    children = job.descendants()

    job.processes[victim].kill()
    codes = [rank.code for rank in job.wait(60)]

    assert codes.pop(victim) == -signal.SIGKILL
    assert (codes[0] or 0) > 0, "the other rank must end by itself, as a failure"
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def slow_writers() -> None:
    write_bucket = writer._write_bucket

    def slow(*arguments):
        time.sleep(60)
        return write_bucket(*arguments)

    writer._write_bucket = slow


def test_a_writer_that_dies_is_reported_and_the_save_is_tried_again(recipe, untroubled):
    recipe = recipe(run={"save_every": 4})
    (end,) = run_job(recipe, fault=writer_of_step_4_dies)
    folder = recipe.run.dir

    assert end.code == 0, end.said
    assert [event["step"] for event in events(folder, "save failed")] != []
    assert "rank 0: the process that wrote it died (exit code -9)" in end.said
    assert 4 not in [event["step"] for event in events(folder, "durable")]
    assert latest(folder) == 8
    assert losses(folder) == losses(untroubled)


def writer_of_step_4_dies() -> None:
    write = writer._write
    calls = iter((die, *[None] * 99))

    def once(*arguments):
        (next_fault := faults.pop(0) if faults else None) and next_fault()
        write(*arguments)

    faults = [next(calls)]
    made = writer.BackgroundWriter.__init__

    def counted(self, planned):
        made(self, planned)
        faults.clear()  # in the parent: later writers live

    writer._write = once
    writer.BackgroundWriter.__init__ = counted


def rank_1_has_no_memory_for_a_writer_of_step_4() -> None:
    if os.environ["RANK"] == "0":
        return
    fork = os.fork

    def refuse() -> int:
        os.fork = fork
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    os.fork = refuse


def test_a_writer_that_cannot_be_started_on_one_rank_is_reported_and_the_save_is_tried_again(
    recipe,
):
    ends = run_job(
        recipe(run={"save_every": 4}), ranks=2, fault=rank_1_has_no_memory_for_a_writer_of_step_4
    )
    folder = recipe().run.dir

    assert [end.code for end in ends] == [0, 0], ends[0].said
    assert "rank 1: no process to write it: Cannot allocate memory" in ends[0].said
    assert 4 not in steps_of(folder)
    assert latest(folder) == 8


def writers_never_begin(forks: list[int]) -> None:
    """Those of these forks wait for ever, as for a lock that a thread of their parent held."""
    number = itertools.count(1)

    def hang():
        if current in forks:
            time.sleep(600)

    def count():
        nonlocal current
        current = next(number)

    current = 0
    writer._SECONDS_TO_BEGIN = 0.5
    os.register_at_fork(before=count, after_in_child=hang)


def the_first_writer_never_begins() -> None:
    writers_never_begin([1])


def three_writers_never_begin() -> None:
    writers_never_begin([1, 2, 3])


def test_a_writer_that_never_begins_is_replaced(recipe):
    recipe = recipe()
    (end,) = run_job(recipe, fault=the_first_writer_never_begins)

    assert end.code == 0, end.said
    assert events(recipe.run.dir, "save failed") == []
    assert steps_of(recipe.run.dir) == [2, 4, 6, 8]


def test_writers_that_never_begin_are_reported_and_the_save_is_tried_again(recipe):
    recipe = recipe(run={"save_every": 4})
    (end,) = run_job(recipe, fault=three_writers_never_begin)

    assert end.code == 0, end.said
    assert "rank 0: none of 3 processes to write it began" in end.said
    assert latest(recipe.run.dir) == 8


def test_requested_and_durable_are_told_apart(recipe):
    recipe = recipe(run={"steps": 2})
    run_job(recipe)

    names = [event["event"] for event in events(recipe.run.dir)]
    assert [name for name in names if name != "health"] == ["requested", "durable"]


def test_a_disk_that_is_full_fails_the_save_loudly_and_training_goes_on(recipe, untroubled):
    recipe = recipe()
    (end,) = run_job(recipe, fault=disk_is_full_until_step_5)
    folder = recipe.run.dir

    failed = events(folder, "save failed")
    assert end.code == 0, end.said
    assert [event["step"] for event in failed] == [2, 3, 4]
    assert "step-00000002: not saved: " in end.said
    assert "File too large" in end.said
    assert steps_of(folder) == [5, 6, 8]
    assert list((folder / "checkpoints").glob(".*.tmp")) == []
    assert losses(folder) == losses(untroubled)


def disk_is_full_until_step_5() -> None:
    """No file may grow beyond 10,000 bytes: as on a full disk, the write itself fails."""
    import resource

    from emu3_megatron.runs.hooks.saving import SaveCheckpoints

    after_step = SaveCheckpoints.after_step

    def limited(self, run, step, result, is_last):
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000 if step < 5 else hard, hard))
        self.config = self.config.model_copy(update={"save_in_background": False})
        after_step(self, run, step, result, is_last)

    SaveCheckpoints.after_step = limited
