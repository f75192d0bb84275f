"""What a run resumes from, and which changes of its recipe a resume may make."""

from pathlib import Path
from typing import Any

from emu3_megatron.checkpoints.folders import (
    newest_sound,
    read_checkpoint,
    refuse_old,
    tracked,
    verify,
)
from emu3_megatron.config.changes import Change, refuse_changes
from emu3_megatron.config.runs import RunConfig
from emu3_megatron.config.schedule import FallingConfig, ScheduleConfig
from emu3_megatron.errors import InputError
from emu3_megatron.parallel.votes import on_first_rank


def checkpoint_to_resume(config: RunConfig) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint that a run resumes from, proven whole, and its manifest; a call on every rank.

    Raises:
        InputError: it is damaged, or of an earlier format.
    """
    folder = config.dir / "checkpoints"
    path = newest_sound(folder) if config.resume == "auto" else tracked(folder)
    if path is None:
        return None, {}
    about = read_checkpoint(path)
    refuse_old(path, about)
    if config.resume == "strict":
        verify(path)
    return path, about


def check_changes(folder: Path, changed: list[Change], accept: bool) -> None:
    """Refuse changes that a resume may not make, and print the others."""
    refuse_changes(folder, changed, accept)
    on_first_rank(lambda: [print(f"recipe changed: {change}") for change in changed])


def last_step(config: RunConfig) -> int:
    """The step that this start of a run ends with."""
    return min(config.steps, config.stop_after or config.steps)


def say_where_the_schedule_ends(schedule: ScheduleConfig, steps: int) -> None:
    """A run may be made longer; its learning rate does not follow by itself."""
    if isinstance(schedule, FallingConfig) and steps > (schedule.steps or steps):
        line = (
            f"run.steps={steps}: steps after optimizer.schedule.steps={schedule.steps} are taken "
            f"at optimizer.schedule.min_lr={schedule.min_lr}; raise optimizer.schedule.steps for "
            "more"
        )
        on_first_rank(lambda: print(line))


def completed_schedule(
    schedule: ScheduleConfig, lr: float, steps: int, past: ScheduleConfig | None
) -> ScheduleConfig:
    """The schedule with its length: that of the first start, or the run's steps.

    Args:
        past: the checkpoint's, whose length a resumed run keeps.

    Raises:
        InputError: it does not fit that length.
    """
    completed = schedule.completed(getattr(past, "steps", None) or steps)
    try:
        completed.check(lr, steps)
    except ValueError as error:
        raise InputError(str(error)) from None
    return completed
