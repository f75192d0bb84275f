"""Hooks that let a run be watched: rows of metrics, held-out loss, sampled images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from emu3_megatron.config import Recipe
from emu3_megatron.model import Decoder
from emu3_megatron.parallel import Mesh
from emu3_megatron.parallel.votes import greatest_of_ranks, on_first_rank
from emu3_megatron.runs.communication import Communication
from emu3_megatron.runs.metrics import (
    Throughput,
    Waited,
    Writer,
    finite,
    open_writers,
    peak_memory,
)
from emu3_megatron.runs.supervision import Run
from emu3_megatron.training.hooks import Hook
from emu3_megatron.training.optimizer import Trainable
from emu3_megatron.training.step import StepResult
from emu3_megatron.training.validation import Validation

# Draws the recipe's captions from the live decoder into a folder, as 0.png, 1.png and so on;
# called on every rank alike.
Sampler = Callable[[Decoder, Path], None]


class LogMetrics(Hook):
    phase = "logging"

    def __init__(self, recipe: Recipe, mesh: Mesh, waited: Waited, communication: Communication):
        self.recipe, self.mesh = recipe, mesh
        self.waited, self.communication = waited, communication
        self.throughput = Throughput(recipe, mesh.size)
        self.writers: list[Writer] = []
        self.skipped = 0

    def before_training(self, step: int) -> None:
        on_first_rank(lambda: self.writers.extend(open_writers(self.recipe, step)))
        self.start_clocks(step)

    def start_clocks(self, step: int) -> None:
        """What follows counts as step `step + 1`; what was since the last row counts as nothing."""
        self.throughput.start(step)
        self.waited.take_seconds()
        self.communication.take_seconds()
        self.communication.is_on = self._is_due(step + 1)

    def after_step(self, step: int, result: StepResult, is_last: bool) -> None:
        self.skipped += result.trouble is not None
        if is_last or self._is_due(step):
            self._log(step, result)
        self.communication.is_on = self._is_due(step + 1)

    def _is_due(self, step: int) -> bool:
        return step % self.recipe.run.log_every == 0 or validates(self.recipe, step)

    def _log(self, step: int, result: StepResult) -> None:
        row: dict[str, Any] = {
            "step": step,
            "loss": result.totals.loss,
            **result.totals.by_class(),
            "grad_norm": result.grad_norm,
            "lr": result.lr,
            **self._measure(step),
            "skipped_steps": self.skipped,
        }
        self.write(row)

    def write(self, row: dict[str, Any]) -> None:
        for writer in self.writers:
            writer.write(finite(row))

    def show(self, step: int, images: dict[str, Path]) -> None:
        for writer in self.writers:
            writer.show(step, images)

    def _measure(self, step: int) -> dict[str, float]:
        """Rates, and of all ranks the greatest times and memory; times are those of one step."""
        data = self.waited.take_seconds() / (step - self.throughput.step)
        communication = self.communication.take_seconds()
        data, most, least, memory = greatest_of_ranks(
            data, communication, -communication, peak_memory() / 1e9
        )
        return {
            **self.throughput.measure(step),
            "data_seconds": data,
            "communication_seconds": most,
            "communication_seconds_least": -least,
            "memory_gb": memory,
        }

    def after_training(self) -> None:
        # On all ranks together: a launcher that sees one leave gives the others little time.
        on_first_rank(self._close)

    def _close(self) -> None:
        for writer in self.writers:
            writer.close()


def validates(recipe: Recipe, step: int) -> bool:
    """Whether the held-out loss is due after a step; the last step of a run always is."""
    if recipe.validation is None:
        return False
    return step % recipe.validation.every == 0 or step == recipe.run.steps


class Validate(Hook):
    """Logs the held-out loss as `validation/...`.

    A run that is told to leave gives the evaluation up; its time counts in no row of metrics.
    """

    phase = "validating"

    def __init__(self, recipe: Recipe, validation: Validation, log: LogMetrics, run: Run):
        self.recipe, self.validation, self.log, self.run = recipe, validation, log, run

    def after_step(self, step: int, result: StepResult, is_last: bool) -> None:
        if not validates(self.recipe, step):
            return

        def goes_on() -> bool:
            self.run.watchdog.at(step, self.phase)
            return not self.run.stop.was_made()

        if totals := self.validation.measure(goes_on):
            measured = {"loss": totals.loss, **totals.by_class()}
            named = {f"validation/{name}": value for name, value in measured.items()}
            self.log.write({"step": step, **named})
        self.log.start_clocks(step)


class DrawSamples(Hook):
    """Images from the recipe's captions, drawn from the live weights.

    A run that is told to leave draws none: its launcher gave it little time.
    """

    phase = "sampling"

    def __init__(self, recipe: Recipe, trainable: Trainable, sampler: Sampler, log: LogMetrics):
        self.recipe, self.trainable, self.sampler = recipe, trainable, sampler
        self.log = log

    def after_step(self, step: int, result: StepResult, is_last: bool) -> None:
        assert self.recipe.sample is not None
        if not result.leaves and (step % self.recipe.sample.every == 0 or is_last):
            folder = self.recipe.run.dir / "samples" / f"step-{step:08d}"
            self.sampler(self.trainable.decoder, folder)
            prompts = enumerate(self.recipe.sample.prompts)
            self.log.show(step, {prompt.caption: folder / f"{i}.png" for i, prompt in prompts})
