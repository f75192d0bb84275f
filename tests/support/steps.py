"""Training steps without the loop's hooks, for tests that compare layouts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu3_megatron import parallel
from emu3_megatron.checkpoints.folders import find_checkpoint
from emu3_megatron.checkpoints.saving import request_checkpoint
from emu3_megatron.checkpoints.state import load_state
from emu3_megatron.config import Recipe
from emu3_megatron.config.base import build
from emu3_megatron.data.mixed import MixtureData
from emu3_megatron.data.setting import Setting
from emu3_megatron.parallel import Mesh
from emu3_megatron.runs.interfaces import StepResult, Verdict
from emu3_megatron.runs.metrics.log import Work
from emu3_megatron.runs.schedule import build_schedule
from emu3_megatron.training.engines import build_engine
from emu3_megatron.training.interfaces import Engine, EngineSetting
from emu3_megatron.training.objectives import build_objective
from emu3_megatron.training.placing import Placer
from emu3_megatron.training.trainer import DecoderTrainer


@dataclass
class Steps:
    """What the loop would put together, for a test to step through.

    Attributes:
        mesh, trainer, data: as in `runs.interfaces.Run`, in whose place this stands.
    """

    recipe: Recipe
    mesh: Mesh
    trainer: DecoderTrainer
    data: Any

    @property
    def engine(self) -> Any:
        return self.trainer.engine

    def take(self, first: int, last: int) -> list[StepResult]:
        """The steps after `first` up to `last`; every one is taken."""
        batches = self.data.batches(self, first, last)
        return [
            self.trainer.step(number, batch, lambda values: Verdict())
            for number, batch in enumerate(batches, start=first + 1)
        ]

    def save(self, folder: Path, step: int) -> Path:
        about = {
            "recipe": self.recipe.model_dump(mode="json"),
            "vocabulary": self.recipe.model.vocabulary().fingerprint(),
        }
        owners = {"trainer": self.trainer, "data": self.data}
        return request_checkpoint(folder, step, owners, about).commit()


def start(recipe: Recipe, engine: Callable[[Any, EngineSetting], Engine] | None = None) -> Steps:
    """Everything that takes steps, on the processes that this one is among.

    Args:
        engine: another than the recipe's.
    """
    mesh = parallel.start(recipe.parallel.tensor, recipe.parallel.context)
    mesh.seed(recipe.run.seed, 0)
    schedule = recipe.optimizer.schedule.completed(recipe.run.steps)
    optimizer = recipe.optimizer.model_copy(update={"schedule": schedule})
    recipe = recipe.model_copy(update={"optimizer": optimizer})
    vocabulary = recipe.model.vocabulary()
    objective = build_objective(recipe.objective, vocabulary)
    setting = EngineSetting.of(recipe)
    trainer = DecoderTrainer(
        engine(recipe.engine, setting) if engine else build_engine(recipe.engine, setting),
        objective,
        rate=build_schedule(optimizer.schedule, optimizer.lr),
        mesh=mesh,
        place=Placer(vocabulary, mesh.context_rank),
        seed=recipe.run.seed,
        work=lambda step: Work(),
    )
    objective.prepare(trainer.engine)
    setting = Setting.of(vocabulary, recipe.batch, recipe.run.seed, objective)
    data = build(recipe.data, {"mixture": MixtureData}, setting)
    return Steps(recipe, mesh, trainer, data)


def losses(
    recipe: Recipe,
    last: int,
    resume_from: Path | None = None,
    save_to: Path | None = None,
    prepare: Callable[[Any], None] = lambda decoder: None,
) -> list[float]:
    """The loss of each step up to `last`, on the processes that this one is among.

    Args:
        prepare: changes the decoder before the first step.
    """
    steps = start(recipe)
    prepare(steps.engine.live)
    first = 0
    if resume_from:
        owners = {"trainer": steps.trainer, "data": steps.data}
        first = load_state(find_checkpoint(resume_from), owners)["step"]
    results = steps.take(first, last)
    if save_to:
        steps.save(save_to, last)
    parallel.stop(keep_processes=True)
    return losses_of(results)


def losses_of(results: Sequence[StepResult]) -> list[float]:
    return [result.metrics["loss"] for result in results]
