"""What happens around a step besides the step itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from emu3_megatron.config import Recipe
from emu3_megatron.model import Decoder
from emu3_megatron.parallel import Mesh
from emu3_megatron.training.checkpoint import prune, save_checkpoint
from emu3_megatron.training.metrics import Throughput, Writer, finite, open_writers
from emu3_megatron.training.optimizer import Trainable
from emu3_megatron.training.step import StepResult

# Draws from the live decoder into a folder; called on every rank alike.
Sampler = Callable[[Decoder, Path], None]


class Hook:
    """Called on every rank alike. Steps count from 1."""

    def before_training(self, step: int) -> None:
        """`step` steps have been taken already."""

    def after_step(self, step: int, result: StepResult, is_last: bool) -> None: ...

    def after_training(self) -> None: ...


class LogMetrics(Hook):
    def __init__(self, recipe: Recipe, mesh: Mesh):
        self.recipe, self.mesh = recipe, mesh
        self.throughput = Throughput(recipe, mesh.size)
        self.writers: list[Writer] = []

    def before_training(self, step: int) -> None:
        if self.mesh.is_first:
            self.writers = open_writers(self.recipe, step)
        self.throughput.start(step)

    def after_step(self, step: int, result: StepResult, is_last: bool) -> None:
        if step % self.recipe.run.log_every and not is_last:
            return
        row: dict[str, Any] = {
            "step": step,
            "loss": result.totals.loss,
            **result.totals.by_class(),
            "grad_norm": result.grad_norm,
            "lr": result.lr,
            **self.throughput.measure(step),
        }
        for writer in self.writers:
            writer.write(finite(row))

    def after_training(self) -> None:
        for writer in self.writers:
            writer.close()


class SaveCheckpoints(Hook):
    def __init__(self, recipe: Recipe, trainable: Trainable):
        self.recipe, self.trainable = recipe, trainable
        self.folder = recipe.run.dir / "checkpoints"

    def after_step(self, step: int, result: StepResult, is_last: bool) -> None:
        if step % self.recipe.run.save_every and not is_last:
            return
        save_checkpoint(self.folder, step, self.trainable, self.recipe)
        prune(self.folder, self.recipe.run.keep)


class DrawSamples(Hook):
    """Images from the recipe's captions, drawn from the live weights."""

    def __init__(self, recipe: Recipe, trainable: Trainable, sampler: Sampler):
        self.recipe, self.trainable, self.sampler = recipe, trainable, sampler

    def after_step(self, step: int, result: StepResult, is_last: bool) -> None:
        assert self.recipe.sample is not None
        if step % self.recipe.sample.every == 0 or is_last:
            folder = self.recipe.run.dir / "samples" / f"step-{step:08d}"
            self.sampler(self.trainable.decoder, folder)
