"""A hook that saves checkpoints at regular steps and after the last."""

import time

from emu3_megatron.checkpoints.folders import prune
from emu3_megatron.checkpoints.saving import PendingSave, SaveError, request_checkpoint
from emu3_megatron.config.runs import RunConfig
from emu3_megatron.runs.interfaces import Hook, Run, StepResult


class SaveCheckpoints(Hook):
    """Requests a checkpoint when one is due, and commits it once all ranks have written theirs.

    A save that fails leaves nothing behind and is tried again soon; the last one must succeed. A
    run whose folder another job has taken over ends: it could not save any more.
    """

    name = "saving"
    order = 90  # behind every hook with state, and behind those that end a run over a bad step

    def __init__(self, config: RunConfig):
        self.config = config
        self.pending: PendingSave | None = None
        self.retry_at: int | None = None
        self._requested_at = time.monotonic()

    def is_due_by_the_clock(self) -> bool:
        """Whether the last save was longer ago than `save_minutes`, as this rank counts."""
        minutes = self.config.save_minutes
        return minutes is not None and time.monotonic() - self._requested_at > 60 * minutes

    def after_step(self, run: Run, step: int, result: StepResult, is_last: bool) -> None:
        if self.pending and self.pending.is_written():
            self.finish(run, step)
        by_step = step % self.config.save_every == 0 or step == self.retry_at
        if not (is_last or by_step or result.verdict.saves):
            return
        self.finish(run, step)
        self._request(run, step, is_last)
        if is_last or not self.config.save_in_background:
            self.finish(run, step, must_succeed=is_last)

    def finish(self, run: Run, step: int, must_succeed: bool = False) -> None:
        """Wait until the pending checkpoint, if any, is durable or has failed."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        try:
            pending.commit(run.still_ours)
        except SaveError as error:
            self._note_failure(run, step, error, must_succeed)
            return
        self.retry_at = None
        run.events.add("durable", pending.step)
        prune(pending.target.parent, self.config.keep, self.config.keep_every, run.still_ours)

    def _request(self, run: Run, step: int, must_succeed: bool) -> None:
        folder = run.folder / "checkpoints"
        self._requested_at = time.monotonic()
        try:
            self.pending = request_checkpoint(folder, step, run.owners(), run.about, run.still_ours)
        except SaveError as error:
            self._note_failure(run, step, error, must_succeed)
            return
        run.events.add("requested", step)

    def _note_failure(self, run: Run, step: int, error: SaveError, must_succeed: bool) -> None:
        self.retry_at = step + max(1, self.config.save_every // 10)
        run.events.add("save failed", step, f"{error}; next try at step {self.retry_at}")
        if must_succeed:
            raise error
