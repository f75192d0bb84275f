"""What the guard, the votes, the watchdog and the manifest cost, on the tiny recipe.

One process: a vote is the call of an all-reduce without its way over a network. A save is compared
with Megatron-core's own save of the same state, which hashes nothing and renames nothing.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import Case, main

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.tiny import VOCABULARY, make_packs

from emu3_megatron import manifest, parallel
from emu3_megatron.config import Recipe, load_recipe
from emu3_megatron.data.batches import Batch, step_batches
from emu3_megatron.data.packs import pack_shards
from emu3_megatron.training.agreement import any_rank
from emu3_megatron.training.checkpoint import _sharded_state, save_checkpoint
from emu3_megatron.training.guard import Guard
from emu3_megatron.training.optimizer import Trainable, build_trainable
from emu3_megatron.training.replicas import drifted
from emu3_megatron.training.samples import open_samples
from emu3_megatron.training.step import TrainStep
from emu3_megatron.training.watchdog import Watchdog


def bare_step(step: TrainStep, batches: list[Batch]) -> Callable[[], Any]:
    """A step that judges nothing and votes on nothing."""
    judge = lambda loss, grad_norm: None

    def run() -> None:
        step.guard.judge, kept = judge, step.guard.judge  # type: ignore[method-assign]
        step(1, batches)
        step.guard.judge = kept  # type: ignore[method-assign]

    return run


def full_guard(recipe: Recipe) -> Guard:
    """A guard that looks for spikes over a full window."""
    guard = Guard(recipe.guard.model_copy(update={"spikes": "skip"}))
    for step in range(recipe.guard.window):
        guard.judge(4.0 + 0.01 * (step % 7), 1.0 + 0.01 * (step % 5))
    return guard


def megatron_save(trainable: Trainable, folder: Path) -> None:
    from megatron.core import dist_checkpointing

    target = Path(tempfile.mkdtemp(dir=folder))
    dist_checkpointing.save(_sharded_state(trainable, is_loading=False), str(target))


def hash_all(path: Path) -> int:
    """Describe every file of a checkpoint, as its writers and the first rank do."""
    return sum(manifest.describe(file)["bytes"] for file in path.iterdir())


def cases(quick: bool) -> Iterator[Case]:
    folder = Path(tempfile.mkdtemp())
    make_packs(folder)
    pack_shards([folder / "shard"], folder / "wide.pack", 704, vocabulary=VOCABULARY)
    source = f"data.sources=[{{pack: {folder / 'wide.pack'}}}]"
    codes = f"model.codes={VOCABULARY.num_codes}"
    recipe = load_recipe(Recipe, "stage1-tiny-cpu", [f"run.dir={folder / 'run'}", source, codes])
    mesh = parallel.start()
    mesh.seed(0, 0)
    vocabulary = recipe.model.vocabulary()
    trainable = build_trainable(recipe)
    step = TrainStep(recipe, vocabulary, mesh, trainable)
    batches = next(
        step_batches(
            open_samples(recipe, vocabulary),
            global_batch=recipe.batch.size,
            micro_batch=recipe.batch.micro_size,
            data_rank=0,
            data_size=1,
            first_step=0,
            last_step=1,
        )
    )
    watchdog = Watchdog(recipe.run.dir, mesh, recipe.run.hang_seconds)
    watchdog.folder.mkdir(parents=True)
    guard = full_guard(recipe)
    often = 100

    def repeat(function: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(often):
                function()

        return run

    yield Case("a step", "without guard", bare_step(step, batches))
    yield Case("a step", "with guard", lambda: step(1, batches))
    yield Case(f"{often} judgements, window full", "emu3", repeat(lambda: guard.judge(4.0, 1.0)))
    yield Case(f"{often} votes on leaving", "emu3", repeat(lambda: any_rank(False)))
    yield Case(f"{often} heartbeats", "emu3", repeat(lambda: watchdog._beat("running")))
    yield Case("comparing replicas", "emu3", lambda: drifted(trainable.decoder))
    ours = folder / "ours"
    yield Case("a save", "megatron-core", lambda: megatron_save(trainable, folder))
    yield Case("a save", "emu3", lambda: save_checkpoint(ours, 1, trainable, recipe))
    yield Case(
        "hashing what a save wrote",
        "emu3",
        lambda: hash_all(ours / "step-00000001"),
        lambda size, seconds: {"bytes": size, "gigabytes_per_second": size / seconds / 1e9},
    )


if __name__ == "__main__":
    main(cases, repeats=9)
