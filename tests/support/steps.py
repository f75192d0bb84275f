"""Training steps without the loop's hooks, for tests that compare layouts."""

from collections.abc import Callable
from pathlib import Path

from emu3_megatron import parallel
from emu3_megatron.config import Recipe
from emu3_megatron.data.batches import step_batches
from emu3_megatron.data.samples import open_samples
from emu3_megatron.model import Decoder
from emu3_megatron.training.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from emu3_megatron.training.optimizer import build_trainable
from emu3_megatron.training.step import TrainStep


def losses(
    recipe: Recipe,
    last: int,
    resume_from: Path | None = None,
    save_to: Path | None = None,
    prepare: Callable[[Decoder], None] = lambda decoder: None,
) -> list[float]:
    """The loss of each step up to `last`, on the processes that this one is among.

    Args:
        prepare: changes the decoder before the first step.
    """
    mesh = parallel.start(recipe.parallel.tensor, recipe.parallel.context)
    mesh.seed(recipe.run.seed, 0)
    vocabulary = recipe.model.vocabulary()
    trainable = build_trainable(recipe)
    prepare(trainable.decoder)
    first = 0
    if resume_from:
        first = load_checkpoint(find_checkpoint(resume_from), trainable)
    batches = step_batches(
        open_samples(recipe, vocabulary),
        global_batch=recipe.batch.size,
        micro_batch=recipe.batch.micro_size,
        data_rank=mesh.data_rank,
        data_size=mesh.data_size,
        first_step=first,
        last_step=last,
    )
    step = TrainStep(recipe, vocabulary, mesh, trainable)
    results = [step(number, batch) for number, batch in enumerate(batches, start=first + 1)]
    if save_to:
        save_checkpoint(save_to, last, trainable, recipe)
    parallel.stop(keep_processes=True)
    return [result.totals.loss for result in results]
