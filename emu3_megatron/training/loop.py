"""The training loop, of every stage."""

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from emu3_megatron import parallel
from emu3_megatron.config import Recipe
from emu3_megatron.config.changes import changes, refuse_changes
from emu3_megatron.config.data import MixtureConfig
from emu3_megatron.data.batches import Batch, step_batches
from emu3_megatron.data.phases import Phase, phases_of
from emu3_megatron.data.samples import open_samples
from emu3_megatron.errors import REQUEUE, InputError, RunEnded
from emu3_megatron.files import write_json
from emu3_megatron.parallel import Mesh
from emu3_megatron.parallel.votes import on_first_rank
from emu3_megatron.runs.metrics import Waited
from emu3_megatron.runs.supervision import Run, supervised
from emu3_megatron.runs.watchdog import Watchdog
from emu3_megatron.training.checkpoint import (
    check_model,
    find_checkpoint,
    load_checkpoint,
    load_decoder,
    newest_sound,
    read_checkpoint,
    tracked,
    verify,
)
from emu3_megatron.training.hooks import (
    CompareReplicas,
    Hook,
    PassOverBadSteps,
    SaveCheckpoints,
)
from emu3_megatron.training.optimizer import Trainable, build_trainable
from emu3_megatron.training.step import TrainStep
from emu3_megatron.training.validation import Validation
from emu3_megatron.training.watching import DrawSamples, LogMetrics, Sampler, Validate


def train(recipe: Recipe, sampler: Sampler | None = None, accept: bool = False) -> None:
    """Train as the recipe says, from the newest checkpoint in its run folder if there is one.

    Args:
        sampler: draws samples from the live decoder, where the recipe asks for them.
        accept: go on though the recipe has changed in what the run learns.

    Raises:
        InputError: data, layout or checkpoint do not fit the recipe.
        RunEnded: the run was told to leave, or gave up.
    """
    mesh = parallel.start(recipe.parallel.tensor, recipe.parallel.context)
    _check_layout(recipe, mesh)
    with supervised(recipe, mesh) as run:
        _train(recipe, mesh, run, sampler, accept)


def _train(recipe: Recipe, mesh: Mesh, run: Run, sampler: Sampler | None, accept: bool) -> None:
    assert isinstance(recipe.data, MixtureConfig)
    vocabulary = recipe.model.vocabulary()
    resume_from, about = _checkpoint(recipe, accept)
    start_from = None if resume_from else _start(recipe)
    first = about["step"] if resume_from else 0
    past = [Phase.of_json(value) for value in about.get("phases", [])]
    phases = phases_of(past, recipe.data.sources, first * recipe.batch.size)
    samples = open_samples(recipe, vocabulary, phases, first * recipe.batch.size)
    _write_description(recipe, phases)
    mesh.seed(recipe.run.seed, 0)
    trainable = build_trainable(recipe)
    _fill(trainable, resume_from, start_from)
    last = min(recipe.run.steps, recipe.run.stop_after or recipe.run.steps)
    if first >= last and mesh.is_first:
        print(f"{recipe.run.dir}: step {first} of {last} is done; raise run.steps to go on")
    batches = Waited(
        step_batches(
            samples,
            global_batch=recipe.batch.size,
            micro_batch=recipe.batch.micro_size,
            data_rank=mesh.data_rank,
            data_size=mesh.data_size,
            first_step=first,
            last_step=last,
            workers=recipe.data.workers,
        )
    )
    train_step = TrainStep(recipe, vocabulary, mesh, trainable, run.stop)
    train_step.guard.load(about.get("guard", {}))
    hooks = _hooks(recipe, mesh, run, train_step, phases, batches, sampler)
    with closing(batches):
        left = _loop(train_step, batches, hooks, run.watchdog, first, last)
    if left:
        run.events.add("left", left, "told to leave: saved, and ready to be started again")
        raise RunEnded(f"{recipe.run.dir}: told to leave after step {left}", REQUEUE)


def _loop(
    train_step: TrainStep,
    batches: Iterable[list[Batch]],
    hooks: list[Hook],
    watchdog: Watchdog,
    first: int,
    last: int,
) -> int | None:
    """Take the steps after `first` up to `last`; the step after which it was told to leave."""
    left = None
    for hook in hooks:
        hook.before_training(first)
    for step, micro_batches in enumerate(batches, start=first + 1):
        watchdog.at(step, "training")
        result = train_step(step, micro_batches)
        for hook in hooks:
            watchdog.at(step, hook.phase)
            hook.after_step(step, result, is_last=result.leaves or step == last)
        watchdog.at(step, "reading data")
        if result.leaves:
            left = step
            break
    for hook in hooks:
        hook.after_training()
    return left


def _hooks(
    recipe: Recipe,
    mesh: Mesh,
    run: Run,
    train_step: TrainStep,
    phases: list[Phase],
    waited: Waited,
    sampler: Sampler | None,
) -> list[Hook]:
    trainable = train_step.trainable

    def memory() -> dict[str, Any]:
        return {
            "phases": [phase.as_json() for phase in phases],
            "guard": train_step.guard.state(),
        }

    saves = SaveCheckpoints(recipe, trainable, run.events, memory)
    log = LogMetrics(recipe, mesh, waited, run.communication)
    hooks: list[Hook] = [
        log,
        PassOverBadSteps(recipe, mesh, trainable, saves, run.events),
        CompareReplicas(recipe, trainable, run.events),
    ]
    if recipe.validation:
        validation = Validation(recipe, train_step.vocabulary, mesh, train_step)
        hooks.append(Validate(recipe, validation, log, run))
    hooks.append(saves)
    if recipe.sample and sampler:
        hooks.append(DrawSamples(recipe, trainable, sampler, log))
    return hooks


def _checkpoint(recipe: Recipe, accept: bool) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint to resume from, proven sound and of this recipe, and its manifest."""
    folder = recipe.run.dir / "checkpoints"
    path = newest_sound(folder) if recipe.run.resume == "auto" else tracked(folder)
    if path is None:
        return None, {}
    about = read_checkpoint(path)
    check_model(path, about, recipe.model)
    changed = list(changes(Recipe.model_validate(about["recipe"]), recipe))
    refuse_changes(recipe.run.dir, changed, accept)
    if recipe.run.resume == "strict":
        verify(path)
    on_first_rank(lambda: [print(f"recipe changed: {line}") for line in changed])
    return path, about


def _start(recipe: Recipe) -> Path | None:
    """The checkpoint whose weights a new run starts from, proven sound and of this model."""
    if recipe.run.init_from is None:
        return None
    init_from = recipe.run.init_from
    path = on_first_rank(lambda: find_checkpoint(init_from))
    check_model(path, read_checkpoint(path), recipe.model)
    verify(path)
    return path


def _write_description(recipe: Recipe, phases: list[Phase]) -> None:
    """`run.json`: recipe and phases of the mixture, for whoever asks about the run."""
    description = {
        "recipe": recipe.model_dump(mode="json"),
        "phases": [phase.as_json() for phase in phases],
    }
    on_first_rank(lambda: write_json(recipe.run.dir / "run.json", description))


def _fill(trainable: Trainable, resume_from: Path | None, start_from: Path | None) -> None:
    """Load what there is to load: all of a checkpoint, or the weights of another run."""
    if resume_from:
        load_checkpoint(resume_from, trainable)
    elif start_from:
        load_decoder(start_from, trainable.decoder)
        trainable.optimizer.reload_model_params()


def _check_layout(recipe: Recipe, mesh: Mesh) -> None:
    step = recipe.batch.micro_size * mesh.data_size
    if recipe.batch.size % step:
        raise InputError(
            f"batch.size={recipe.batch.size} must be a multiple of batch.micro_size x data "
            f"parallel ranks = {recipe.batch.micro_size} x {mesh.data_size} = {step}"
        )
