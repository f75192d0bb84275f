"""What happens around a step besides the step itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from emu3_megatron.checkpoints.saving import PendingSave, SaveError
from emu3_megatron.config import Recipe
from emu3_megatron.errors import DIVERGED, RunEnded
from emu3_megatron.files import write_json
from emu3_megatron.parallel import Mesh
from emu3_megatron.parallel.votes import on_first_rank
from emu3_megatron.runs.events import Events
from emu3_megatron.runs.guard import Trouble
from emu3_megatron.training.checkpoint import (
    load_checkpoint,
    prune,
    request_checkpoint,
    tracked,
    verify,
)
from emu3_megatron.training.optimizer import Trainable, set_schedule
from emu3_megatron.training.replicas import drifted
from emu3_megatron.training.step import StepResult


class Hook:
    """Called on every rank alike. Steps count from 1.

    Attributes:
        phase: what the rank is doing while the hook runs, for heartbeats.
    """

    phase = "between steps"

    def before_training(self, step: int) -> None:
        """`step` steps have been taken already."""

    def after_step(self, step: int, result: StepResult, is_last: bool) -> None: ...

    def after_training(self) -> None: ...


class SaveCheckpoints(Hook):
    """Requests a checkpoint when one is due, and commits it once all ranks have written theirs.

    A save that fails leaves nothing behind and is tried again soon; the last one must succeed.

    Args:
        memory: what a resumed run must know besides weights and optimizer; JSON.
    """

    phase = "saving"

    def __init__(
        self,
        recipe: Recipe,
        trainable: Trainable,
        events: Events,
        memory: Callable[[], dict[str, Any]],
    ):
        self.recipe, self.trainable = recipe, trainable
        self.events, self.memory = events, memory
        self.folder = recipe.run.dir / "checkpoints"
        self.pending: PendingSave | None = None
        self.retry_at: int | None = None

    def after_step(self, step: int, result: StepResult, is_last: bool) -> None:
        if self.pending and self.pending.is_written():
            self.finish(step)
        if not (is_last or step % self.recipe.run.save_every == 0 or step == self.retry_at):
            return
        self.finish(step)
        self._request(step, is_last)
        if is_last or not self.recipe.run.save_in_background:
            self.finish(step, must_succeed=is_last)

    def finish(self, step: int, must_succeed: bool = False) -> None:
        """Wait until the pending checkpoint, if any, is durable or has failed."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        try:
            pending.commit()
        except SaveError as error:
            self._note_failure(step, error, must_succeed)
            return
        self.retry_at = None
        self.events.add("durable", pending.step)
        prune(self.folder, self.recipe.run.keep)

    def _request(self, step: int, must_succeed: bool) -> None:
        try:
            self.pending = request_checkpoint(
                self.folder, step, self.trainable, self.recipe, **self.memory()
            )
        except SaveError as error:
            self._note_failure(step, error, must_succeed)
            return
        self.events.add("requested", step)

    def _note_failure(self, step: int, error: SaveError, must_succeed: bool) -> None:
        self.retry_at = step + max(1, self.recipe.run.save_every // 10)
        self.events.add("save failed", step, f"{error}; next try at step {self.retry_at}")
        if must_succeed:
            raise error


class PassOverBadSteps(Hook):
    """Writes down the steps that the guard did not let through, goes back, and knows when to stop.

    The number of a bad step, its samples and its place in the schedule are used up: weights and
    Adam's states alone stay what they were, or go back to the last checkpoint's.
    """

    phase = "passing over a bad step"

    def __init__(
        self,
        recipe: Recipe,
        mesh: Mesh,
        trainable: Trainable,
        saves: SaveCheckpoints,
        events: Events,
    ):
        self.recipe, self.mesh, self.trainable = recipe, mesh, trainable
        self.saves, self.events = saves, events
        self.in_a_row = 0
        self.returns: list[Path] = []

    def after_step(self, step: int, result: StepResult, is_last: bool) -> None:
        trouble = result.trouble
        if trouble is None:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self._write_down(step, trouble)
        if trouble.reason == "spike" and self.recipe.guard.spikes == "rollback":
            self._roll_back(step)
        if max(self.in_a_row, len(self.returns)) >= self.recipe.guard.patience:
            self.events.add("gave up", step, details=f"{self.in_a_row} bad steps in a row")
            raise RunEnded(
                f"{self.recipe.run.dir}: step {step} was bad ({trouble.reason}), "
                f"{self.in_a_row} in a row; {self._dump(step)} names its documents",
                DIVERGED,
            )

    def _write_down(self, step: int, trouble: Trouble) -> None:
        ranks: list[Any] = [None] * self.mesh.size
        mine = {
            "rank": self.mesh.rank,
            "data": self.mesh.data_rank,
            "tensor": self.mesh.tensor_rank,
            "context": self.mesh.context_rank,
            "micro_batches": trouble.micro_batches,
        }
        dist.all_gather_object(ranks, mine)
        found = {
            "step": step,
            "seed": self.recipe.run.seed,
            "reason": trouble.reason,
            "loss": str(trouble.loss),
            "grad_norm": str(trouble.grad_norm),
            "ranks": ranks,
        }
        on_first_rank(lambda: write_json(self._dump(step), found))
        words = f"{trouble.reason}: loss {trouble.loss:.4g}, gradient norm {trouble.grad_norm:.4g}"
        self.events.add("skipped", step, f"not taken, {words}; see {self._dump(step)}", why=words)

    def _roll_back(self, step: int) -> None:
        """Weights and Adam's states of the last checkpoint; step, data and schedule go on."""
        self.saves.finish(step)
        path = tracked(self.saves.folder)
        if path is None:
            return
        verify(path)
        back_to = load_checkpoint(path, self.trainable)
        set_schedule(self.trainable.schedule, step)
        self.returns = [*(p for p in self.returns if p == path), path]
        words = f"weights are those of step {back_to} again; data goes on behind step {step}"
        self.events.add("rolled back", step, words, to=back_to)

    def _dump(self, step: int) -> Path:
        return self.recipe.run.dir / "skipped" / f"step-{step:08d}.json"


class CompareReplicas(Hook):
    """Ends a run whose ranks no longer hold the same copies."""

    phase = "comparing replicas"

    def __init__(self, recipe: Recipe, trainable: Trainable, events: Events):
        self.recipe, self.trainable, self.events = recipe, trainable, events

    def after_step(self, step: int, result: StepResult, is_last: bool) -> None:
        if step % self.recipe.guard.replicas_every and not is_last:
            return
        if words := drifted(self.trainable.decoder):
            self.events.add("replicas differ", step, why=words)
            raise RunEnded(
                f"step {step}: {words}; the last checkpoint may hold the damage if it is younger "
                f"than {self.recipe.guard.replicas_every} steps",
                DIVERGED,
            )
