"""Trains a decoder as a recipe says: what a run starts from, its hooks, its checkpoints."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from emu3_megatron import parallel
from emu3_megatron.checkpoints.folders import read_checkpoint, saw_empty_captions
from emu3_megatron.checkpoints.state import SplitState, load_state
from emu3_megatron.config import ModelConfig, Recipe
from emu3_megatron.config.base import Component
from emu3_megatron.config.changes import changes
from emu3_megatron.config.engines import DeepSpeedConfig
from emu3_megatron.config.load import saved_recipe
from emu3_megatron.config.schedule import ScheduleConfig
from emu3_megatron.config.training import BatchConfig, DecoderRunConfig
from emu3_megatron.data.batch_sizes import BatchSizes
from emu3_megatron.data.held_out import HeldOut
from emu3_megatron.data.setting import Setting
from emu3_megatron.errors import InputError
from emu3_megatron.model.flops import flops_per_token, peak_flops
from emu3_megatron.model.opening import check_model, find_weights
from emu3_megatron.model.tensors import named_tensors
from emu3_megatron.parallel.mesh import UNDER_WATCH
from emu3_megatron.runs.hooks.divergence import WatchLoss
from emu3_megatron.runs.hooks.guard import Guard
from emu3_megatron.runs.hooks.health import CheckHealth
from emu3_megatron.runs.hooks.logging import LogMetrics, Validate
from emu3_megatron.runs.hooks.profiling import Profile
from emu3_megatron.runs.hooks.replicas import CompareReplicas, Named
from emu3_megatron.runs.hooks.saving import SaveCheckpoints
from emu3_megatron.runs.interfaces import Data, Hook, Run
from emu3_megatron.runs.loop import take_steps
from emu3_megatron.runs.metrics.log import Work
from emu3_megatron.runs.resuming import (
    check_changes,
    checkpoint_to_resume,
    completed_schedule,
    last_step,
    say_where_the_schedule_ends,
)
from emu3_megatron.runs.schedule import build_schedule
from emu3_megatron.runs.starting import watched_start
from emu3_megatron.runs.supervision import supervised
from emu3_megatron.training.engines import build_engine
from emu3_megatron.training.engines.hub_weights import check_hub_folder, is_hub_folder
from emu3_megatron.training.evaluator import HeldOutLoss
from emu3_megatron.training.exporting import ExportFolder
from emu3_megatron.training.interfaces import Engine, EngineSetting, Objective
from emu3_megatron.training.placing import Placer
from emu3_megatron.training.trainer import DecoderTrainer


def train(
    recipe: Recipe,
    *,
    objective: Objective,
    data: Data[Any],
    hooks: Sequence[Hook] = (),
    accept: bool = False,
) -> None:
    """Train as the recipe says, from the newest checkpoint in its run folder if there is one.

    Args:
        hooks: besides those of every run: logging, guard, comparing replicas, validation, saving.
        accept: go on though the recipe has changed in what the run learns.

    Raises:
        InputError: data, layout or checkpoint do not fit the recipe.
        RunEnded: the run was told to leave, or gave up.
    """
    with watched_start(recipe.run.hang_seconds):
        mesh = parallel.start(recipe.parallel.tensor, recipe.parallel.context, UNDER_WATCH)
    recipe.batch.check(mesh.data_size)
    with supervised(recipe.run, mesh, peak_flops()) as run:
        checkpoint, about = checkpoint_to_resume(recipe.run)
        before = None
        if checkpoint:
            check_model(checkpoint, about, recipe.model)
            before = saved_recipe(Recipe, about["recipe"], f"{checkpoint}: its recipe")
        recipe = _completed(recipe, objective, data, before)
        if before:
            check_changes(run.folder, list(changes(before, recipe)), accept)
            _check_base(recipe.engine, before.run, recipe.run)
            _check_precision(recipe.engine, before.precision, recipe.precision)
        say_where_the_schedule_ends(recipe.optimizer.schedule, recipe.run.steps)
        first = about.get("step", 0)
        last = last_step(recipe.run)
        start_from, origin = None, about
        # A checkpoint of adapters does not hold the weights on which they stand.
        if not checkpoint or getattr(recipe.engine, "lora", None):
            start_from, origin = _to_start_from(recipe.run, recipe.model, recipe.engine)
        guard = _assemble(run, recipe, objective, data, hooks)
        _load(run, checkpoint, start_from, same_data=_is_same_data(recipe.data.kind, about))
        empty = objective.group is None and getattr(recipe.data, "null_prompt", 0) > 0
        run.about = {
            **_describe(recipe),
            "null_prompt": empty or saw_empty_captions(origin),
            "grid": getattr(data, "grid", None),
            "max_positions": max(origin.get("max_positions") or 0, recipe.context),
            "image_area": origin.get("image_area"),
        }
        if first >= last and mesh.is_first:
            print(f"{run.folder}: step {first} of {last} is done; raise run.steps to go on")
        take_steps(run, guard, first, last)


def _check_base(engine: Component, before: DecoderRunConfig, now: DecoderRunConfig) -> None:
    """Adapters stand on the weights that their run started from."""
    if getattr(engine, "lora", None) and before.init_from != now.init_from:
        raise InputError(
            f"run.init_from={now.init_from}: the adapters of this run stand on "
            f"{before.init_from}; set it back, or choose another run.dir"
        )


def _check_precision(engine: Component, before: str, now: str) -> None:
    """The built-in Megatron engine alone loads optimizer states of another precision."""
    if engine.kind != "megatron" and before != now:
        raise InputError(
            f"precision: {before} → {now}: engine {engine.kind} cannot change it within a run; set "
            "it back, or choose another run.dir"
        )


def _to_start_from(
    config: DecoderRunConfig, model: ModelConfig, engine: Component
) -> tuple[Path | None, dict[str, Any]]:
    """The weights that a run starts from, proven of this model, and what is known of them."""
    init_from = config.init_from
    if init_from is None:
        return None, {}
    if is_hub_folder(init_from):
        if not isinstance(engine, DeepSpeedConfig):
            raise InputError(
                f"run.init_from={init_from}: a Hugging Face folder; make a checkpoint of it: "
                "emu3 convert import"
            )
        return init_from, check_hub_folder(init_from, model)
    path = find_weights(init_from, model)
    return path, read_checkpoint(path)


def _completed(
    recipe: Recipe, objective: Objective, data: Data[Any], before: Recipe | None
) -> Recipe:
    """The recipe with what its first start fills in: contents of sources, length of the schedule.

    Args:
        before: the checkpoint's recipe, whose length a resumed run keeps.

    Raises:
        InputError: the schedule does not fit that length.
    """
    optimizer, past = recipe.optimizer, before.optimizer.schedule if before else None
    schedule = completed_schedule(optimizer.schedule, optimizer.lr, recipe.run.steps, past)
    filled = {
        "optimizer": optimizer.model_copy(update={"schedule": schedule}),
        "objective": getattr(objective, "section", recipe.objective),
        "data": getattr(data, "section", recipe.data),
    }
    return recipe.model_copy(update=filled)


def _assemble(
    run: Run, recipe: Recipe, objective: Objective, data: Data[Any], hooks: Sequence[Hook]
) -> Guard:
    """Give a run its trainer, data and hooks."""
    vocabulary, mesh = recipe.model.vocabulary(), run.mesh
    mesh.seed(recipe.run.seed, 0)
    engine = build_engine(recipe.engine, EngineSetting.of(recipe))
    adapters = getattr(recipe.engine, "lora", None) is not None
    trainer = DecoderTrainer(
        engine,
        objective,
        rate=build_schedule(recipe.optimizer.schedule, recipe.optimizer.lr),
        mesh=mesh,
        place=Placer(vocabulary, mesh.context_rank),
        seed=recipe.run.seed,
        work=_work(recipe.model, recipe.context, recipe.batch, frozen=adapters),
    )
    objective.prepare(engine)
    saves = SaveCheckpoints(recipe.run)
    guard = Guard(recipe.guard, saves)
    run.trainer, run.data = trainer, data
    run.hooks = [
        CheckHealth(),
        LogMetrics(recipe.run, recipe.validation),
        guard,
        CompareReplicas(recipe.guard, partial(_live_weights, engine)),
        *_watching(recipe.optimizer.schedule, recipe.run, objective),
        saves,
        *([ExportFolder(recipe.run, engine)] if recipe.run.export else []),
        *([Profile(recipe.run.profile)] if recipe.run.profile else []),
        *hooks,
    ]
    if recipe.validation:
        setting = Setting.of(vocabulary, recipe.batch, recipe.run.seed, objective)
        held_out = HeldOut(recipe.validation, setting, recipe.data)
        evaluator = HeldOutLoss(trainer, engine.decoder, held_out, run)
        run.hooks.append(Validate(recipe.validation, evaluator))
    return guard


def _watching(schedule: ScheduleConfig, run: DecoderRunConfig, objective: Objective) -> list[Hook]:
    """What says that nothing is learned. A loss of preferences has a hook of its own."""
    if objective.group is not None:
        return []
    return [WatchLoss(schedule.warmup_steps, is_new=run.init_from is None)]


def _work(
    model: ModelConfig, context: int, batch: BatchConfig, frozen: bool
) -> Callable[[int], Work]:
    """What each step comes to."""
    sizes, flops = BatchSizes(batch), flops_per_token(model, context, frozen=frozen)

    def work(step: int) -> Work:
        tokens = len(sizes.sequences(step)) * context
        return Work(tokens, tokens * flops)

    return work


@contextmanager
def _live_weights(engine: Engine) -> Iterator[Iterable[Named]]:
    with engine.decoder() as decoder:
        yield named_tensors(decoder)


def _is_same_data(kind: str, about: dict[str, Any]) -> bool:
    """Whether data of a kind is what a checkpoint holds the state of."""
    return bool(about) and about["recipe"]["data"]["kind"] == kind


def _load(run: Run, checkpoint: Path | None, start_from: Path | None, same_data: bool) -> None:
    """Load what there is to load: the weights to start from, all of a checkpoint.

    Args:
        same_data: otherwise its state is another kind's, and the data begins anew.
    """
    # Of a new run too: what no checkpoint could hold is refused before the first step.
    owners, trainer = run.owners(), run.trainer
    if start_from:
        assert isinstance(trainer, DecoderTrainer)
        trainer.engine.start_from(start_from)
    SplitState.of({hook.name: hook for hook in run.hooks})
    if checkpoint:
        if not same_data:
            del owners["data"]
        load_state(checkpoint, owners)


def _describe(recipe: Recipe) -> dict[str, Any]:
    """What the run's checkpoints and `run.json` say of its recipe."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "vocabulary": recipe.model.vocabulary().fingerprint(),
    }
