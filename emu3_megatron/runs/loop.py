"""The training loop of every stage and every model."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any, NoReturn

from emu3_megatron.errors import INTERRUPTED, REQUEUE, InputError, RunEnded
from emu3_megatron.parallel.votes import any_rank
from emu3_megatron.runs.hooks.guard import Guard
from emu3_megatron.runs.interfaces import Run


def take_steps(run: Run, guard: Guard, first: int, last: int) -> None:
    """Take the steps after `first` up to `last`.

    Args:
        run: with its trainer, data and hooks.
        guard: judges each step; one of the hooks.

    Raises:
        InputError: two hooks have one name, or the data gave fewer steps.
        RunEnded: the run was told to leave, or a hook ended it.
    """
    run.owners()  # refuses two of one name before the first step, not at the first save
    hooks = sorted(run.hooks, key=lambda hook: hook.order)
    judge = lambda values: guard.judge(values, run.stop.was_told)
    left = None
    with closing(run.log.waited(run.data.batches(run, first, last))) as steps:
        run.describe()
        for hook in hooks:
            hook.before_training(run, first)
        for step, batches in _numbered(steps, first, last):
            run.watchdog.at(step, "training")
            result = run.trainer.step(step, batches, judge)
            leaves = result.verdict.leaves
            for hook in hooks:
                run.watchdog.at(step, hook.name)
                hook.after_step(run, step, result, is_last=leaves or step == last)
            run.watchdog.at(step, "reading data")
            if leaves:
                left = step
                break
        for hook in hooks:
            hook.after_training(run)
    if left:
        _leave(run, left)


def _leave(run: Run, step: int) -> NoReturn:
    (interrupted,) = any_rank(run.stop.was_interrupted)
    why = "interrupted" if interrupted else "told to leave"
    run.events.add("left", step, f"{why}: saved, and ready to be started again", why=why)
    code = INTERRUPTED if interrupted else REQUEUE
    raise RunEnded(f"{run.folder}: {why} after step {step}", code)


def _numbered(steps: Iterable[Any], first: int, last: int) -> Iterator[tuple[int, Any]]:
    """Each step after `first` up to `last` with its batches; what the data gives beyond is left."""
    step = first
    for step, batches in zip(range(first + 1, last + 1), steps, strict=False):
        yield step, batches
    if step < last:
        raise InputError(
            f"data: it ended after step {step} of {last}; let its batches() give every step, or "
            "lower run.steps"
        )
