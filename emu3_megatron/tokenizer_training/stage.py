"""Trains a vision tokenizer as a recipe says: what it starts from, its hooks, its checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from emu3_megatron import parallel
from emu3_megatron.checkpoints.state import load_state
from emu3_megatron.config.changes import changes
from emu3_megatron.config.load import saved_recipe
from emu3_megatron.config.tokenizer_training import TokenizerRecipe
from emu3_megatron.media.overlap import refuse_overlap
from emu3_megatron.parallel.mesh import UNDER_WATCH
from emu3_megatron.parallel.votes import on_first_rank
from emu3_megatron.runs.hooks.guard import Guard
from emu3_megatron.runs.hooks.health import CheckHealth
from emu3_megatron.runs.hooks.logging import LogMetrics, Validate
from emu3_megatron.runs.hooks.profiling import Profile
from emu3_megatron.runs.hooks.replicas import CompareReplicas, Named
from emu3_megatron.runs.hooks.saving import SaveCheckpoints
from emu3_megatron.runs.interfaces import Run
from emu3_megatron.runs.loop import take_steps
from emu3_megatron.runs.resuming import (
    check_changes,
    checkpoint_to_resume,
    completed_schedule,
    last_step,
    say_where_the_schedule_ends,
)
from emu3_megatron.runs.starting import watched_start
from emu3_megatron.runs.supervision import supervised
from emu3_megatron.tokenizer_training.building import build_trainer
from emu3_megatron.tokenizer_training.data import TokenizerFiles
from emu3_megatron.tokenizer_training.held_out import HeldOutFiles
from emu3_megatron.tokenizer_training.hooks import ShowReconstructions, WriteTokenizer

_MEASURED = 32  # photos, where no step used the codes


def train_tokenizer(recipe: TokenizerRecipe, accept: bool = False) -> None:
    """Train as the recipe says, from the newest checkpoint in its run folder if there is one.

    At the end the tokenizer lies in `tokenizer/` of the run folder.

    Args:
        accept: go on though the recipe has changed in what the run learns.

    Raises:
        InputError: files, checkpoint or weights to start from do not fit the recipe.
        RunEnded: the run was told to leave, or gave up.
    """
    with watched_start(recipe.run.hang_seconds):
        mesh = parallel.start(timeout=UNDER_WATCH)
    with supervised(recipe.run, mesh, peak_flops=None) as run:
        checkpoint, about = checkpoint_to_resume(recipe.run)
        least_side = recipe.loss.perceptual.least_side
        data = TokenizerFiles(recipe.data, recipe.batch, recipe.run.seed, least_side)
        before = None
        if checkpoint:
            before = saved_recipe(TokenizerRecipe, about["recipe"], f"{checkpoint}: its recipe")
        recipe = _completed(recipe, data, before)
        if before:
            check_changes(run.folder, list(changes(before, recipe)), accept)
        say_where_the_schedule_ends(recipe.optimizer.schedule, recipe.run.steps)
        first, last = about.get("step", 0), last_step(recipe.run)
        guard = _assemble(run, recipe, data, is_new=checkpoint is None)
        if checkpoint:
            load_state(checkpoint, run.owners())
        run.about = {"recipe": recipe.model_dump(mode="json"), "terms": recipe.terms}
        if first >= last and mesh.is_first:
            print(f"{run.folder}: step {first} of {last} is done; raise run.steps to go on")
        take_steps(run, guard, first, last)


def _completed(
    recipe: TokenizerRecipe, data: TokenizerFiles, before: TokenizerRecipe | None
) -> TokenizerRecipe:
    """The recipe with what its first start fills in: length of the schedule, hash of the files."""
    optimizer, past = recipe.optimizer, before.optimizer.schedule if before else None
    schedule = completed_schedule(optimizer.schedule, optimizer.lr, recipe.run.steps, past)
    filled: dict[str, Any] = {
        "optimizer": optimizer.model_copy(update={"schedule": schedule}),
        "data": data.section,
    }
    if recipe.run.init_from and recipe.trained != "new_codes":  # it comes with codes
        filled["codebook"] = recipe.codebook.model_copy(update={"plain_steps": 0})
    return recipe.model_copy(update=filled)


def _assemble(run: Run, recipe: TokenizerRecipe, data: TokenizerFiles, is_new: bool) -> Guard:
    """Give a run its trainer, data and hooks."""
    report = _Unusable(run)
    trainer = build_trainer(recipe, data.samples, run.mesh, report, is_new)
    saves = SaveCheckpoints(recipe.run)
    guard = Guard(recipe.guard, saves)
    run.trainer, run.data = trainer, data

    @contextmanager
    def weights() -> Iterator[Iterator[Named]]:
        yield trainer.named_tensors()

    run.hooks = [
        CheckHealth(),
        LogMetrics(recipe.run, recipe.validation),
        guard,
        CompareReplicas(recipe.guard, weights),
        saves,
        WriteTokenizer(trainer, data.samples.images[:_MEASURED], recipe.data.area),
        *([Profile(recipe.run.profile)] if recipe.run.profile else []),
    ]
    if recipe.validation:
        held_out = HeldOutFiles(recipe.validation, trainer.with_codes, run.mesh)
        on_first_rank(lambda: refuse_overlap(held_out.paths, data.samples.paths))
        run.hooks += [Validate(recipe.validation, held_out), ShowReconstructions(held_out)]
    return guard


class _Unusable:
    """Names each file that cannot be used, once; a call on every rank."""

    def __init__(self, run: Run):
        self.run = run
        self.known: set[str] = set()

    def __call__(self, step: int, faults: list[str]) -> None:
        gathered: list[list[str]] = [[]] * self.run.mesh.size
        dist.all_gather_object(gathered, faults)
        told = {fault for of_rank in gathered for fault in of_rank}
        for fault in sorted(told - self.known):
            self.run.events.add("unusable file", step, f"left out: {fault}", details=fault)
        self.known |= told
