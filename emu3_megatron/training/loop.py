"""The training loop, of every stage."""

from pathlib import Path

from emu3_megatron import parallel
from emu3_megatron.config import Recipe
from emu3_megatron.data.batches import PackedSamples, step_batches
from emu3_megatron.data.mixture import Mixture
from emu3_megatron.data.pack_set import PackSet
from emu3_megatron.errors import InputError
from emu3_megatron.parallel import Mesh
from emu3_megatron.training.checkpoint import (
    check_model,
    find_checkpoint,
    load_checkpoint,
    load_decoder,
    read_checkpoint,
)
from emu3_megatron.training.hooks import DrawSamples, Hook, LogMetrics, Sampler, SaveCheckpoints
from emu3_megatron.training.optimizer import Trainable, build_trainable
from emu3_megatron.training.step import TrainStep
from emu3_megatron.vocabulary import Vocabulary


def train(recipe: Recipe, sampler: Sampler | None = None) -> None:
    """Train as the recipe says, from the newest checkpoint in its run folder if there is one.

    Args:
        sampler: draws samples from the live decoder, where the recipe asks for them.

    Raises:
        InputError: data, layout or checkpoint do not fit the recipe.
    """
    mesh = parallel.start(recipe.parallel.tensor, recipe.parallel.context)
    _check_layout(recipe, mesh)
    vocabulary = recipe.model.vocabulary()
    samples = open_samples(recipe, vocabulary)
    resume_from, start_from = _checkpoints(recipe)
    mesh.seed(recipe.run.seed, 0)
    trainable = build_trainable(recipe)
    first = _fill(trainable, resume_from, start_from)
    last = min(recipe.run.steps, recipe.run.stop_after or recipe.run.steps)
    if first >= last and mesh.is_first:
        print(f"{recipe.run.dir}: step {first} of {last} is done; raise run.steps to go on")
    batches = step_batches(
        samples,
        global_batch=recipe.batch.size,
        micro_batch=recipe.batch.micro_size,
        data_rank=mesh.data_rank,
        data_size=mesh.data_size,
        first_step=first,
        last_step=last,
        workers=recipe.data.workers,
    )
    train_step = TrainStep(recipe, vocabulary, mesh, trainable)
    hooks = _hooks(recipe, mesh, trainable, sampler)

    for hook in hooks:
        hook.before_training(first)
    for step, micro_batches in enumerate(batches, start=first + 1):
        result = train_step(step, micro_batches)
        for hook in hooks:
            hook.after_step(step, result, is_last=step == last)
    for hook in hooks:
        hook.after_training()


def open_samples(recipe: Recipe, vocabulary: Vocabulary) -> PackedSamples:
    """The recipe's mixture, as numbered samples.

    Raises:
        InputError: packs are missing, damaged, or of another context or vocabulary.
    """
    sources = [PackSet(source.pack, vocabulary) for source in recipe.data.sources]
    for source in sources:
        if source.context != recipe.data.context:
            raise InputError(
                f"{source.path}: packed for a context of {source.context:,}, data.context is "
                f"{recipe.data.context:,}; pack again or change the recipe"
            )
    weights = [source.weight for source in recipe.data.sources]
    mixture = Mixture(sources, weights, recipe.run.seed)
    return PackedSamples(mixture, vocabulary, recipe.weights.table, recipe.data.reset_at_documents)


def _hooks(recipe: Recipe, mesh: Mesh, trainable: Trainable, sampler: Sampler | None) -> list[Hook]:
    hooks = [LogMetrics(recipe, mesh), SaveCheckpoints(recipe, trainable)]
    if recipe.sample and sampler:
        hooks.append(DrawSamples(recipe, trainable, sampler))
    return hooks


def _checkpoints(recipe: Recipe) -> tuple[Path | None, Path | None]:
    """The checkpoint to resume from, or else the one whose weights to start from."""
    found: tuple[Path | None, Path | None] = None, None
    if (recipe.run.dir / "checkpoints" / "latest").is_file():
        found = find_checkpoint(recipe.run.dir), None
    elif recipe.run.init_from:
        found = None, find_checkpoint(recipe.run.init_from)
    for path in filter(None, found):
        check_model(path, read_checkpoint(path), recipe.model)
    return found


def _fill(trainable: Trainable, resume_from: Path | None, start_from: Path | None) -> int:
    """Load what there is to load; return the steps already taken."""
    if resume_from:
        return load_checkpoint(resume_from, trainable)
    if start_from:
        load_decoder(start_from, trainable.decoder)
        trainable.optimizer.reload_model_params()
    return 0


def _check_layout(recipe: Recipe, mesh: Mesh) -> None:
    step = recipe.batch.micro_size * mesh.data_size
    if recipe.batch.size % step:
        raise InputError(
            f"batch.size={recipe.batch.size} must be a multiple of batch.micro_size x data "
            f"parallel ranks = {recipe.batch.micro_size} x {mesh.data_size} = {step}"
        )
