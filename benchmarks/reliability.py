"""What the guard, its vote, the clocks, the watchdog and the manifest cost, on the tiny recipe.

Over one process and over two that share the batch. Whole steps are taken in pairs, one without any
of it and one with all that a step of a run does; the parts are timed alone. A save is compared
with Megatron-core's own save of the same state, which hashes nothing and renames nothing.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from harness import Case, main

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.ports import free_port
from support.processes import _context
from support.steps import Steps, start
from support.tiny import VOCABULARY, make_packs

from emu3_megatron import manifest, parallel
from emu3_megatron.config import Recipe, load_recipe
from emu3_megatron.data.packing.packs import pack_shards
from emu3_megatron.model.tensors import named_tensors
from emu3_megatron.runs.communication import Communication, HostClock
from emu3_megatron.runs.hooks.guard import Guard
from emu3_megatron.runs.hooks.replicas import drifted
from emu3_megatron.runs.hooks.saving import SaveCheckpoints
from emu3_megatron.runs.interfaces import Verdict
from emu3_megatron.runs.watchdog import Watchdog

PAIRS = 50  # of steps a run
OFTEN = 100
LEAVE = -1

Action = Callable[[], Any]


def step_pairs(steps: Steps, batches: list, guard: Guard, watchdog: Watchdog) -> Action:
    """Seconds of a step without and with everything, one after the other, `PAIRS` times more.

    It returns the pairs of all its runs but the first, which warms up.
    """
    found: list[tuple[float, float]] = []

    def bare() -> None:
        steps.trainer.step(1, batches, lambda values: Verdict())

    def whole() -> None:
        with Communication(HostClock()) as communication:
            watchdog.at(1, "training")
            steps.trainer.step(1, batches, guard.judge)
            watchdog.at(1, "reading data")
            communication.take_seconds()

    def pair(number: int) -> tuple[float, float]:
        if number % 2:  # either comes first as often
            took = seconds(whole)
            return seconds(bare), took
        return seconds(bare), seconds(whole)

    def run() -> list[tuple[float, float]]:
        found.extend(pair(number) for number in range(PAIRS))
        return found[PAIRS:]

    return run


def seconds(action: Action) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def in_pairs(found: list[tuple[float, float]], least: float) -> dict[str, Any]:
    bare, whole = zip(*found, strict=True)
    shares = sorted(w / b - 1 for b, w in found)
    # Order statistics between which the median lies with 95%.
    middle, half = len(shares) / 2, 0.98 * len(shares) ** 0.5
    return {
        "bare_ms": 1e3 * statistics.median(bare),
        "whole_ms": 1e3 * statistics.median(whole),
        "overhead": statistics.median(shares),
        "overhead_low": shares[max(0, int(middle - half))],
        "overhead_high": shares[min(len(shares) - 1, int(middle + half))],
        "pairs": len(shares),
    }


def full_guard(recipe: Recipe) -> Guard:
    """A guard that looks for spikes over a full window."""
    config = recipe.guard.model_copy(update={"spikes": "skip"})
    guard = Guard(config, SaveCheckpoints(recipe.run))
    for step in range(recipe.guard.window):
        guard.judge({"loss": 4.0 + 0.01 * (step % 7), "grad_norm": 1.0 + 0.01 * (step % 5)})
    return guard


def megatron_save(steps: Steps, folder: Path) -> None:
    from megatron.core import dist_checkpointing

    target = [tempfile.mkdtemp(dir=folder) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(target)
    dist_checkpointing.save(steps.engine.state_dict(), str(target[0]))


def hash_all(path: Path) -> int:
    """Describe every file of a checkpoint, as its writers and the first rank do."""
    return sum(manifest.describe(file)["bytes"] for file in path.iterdir())


def repeat(function: Action) -> Action:
    def run() -> None:
        for _ in range(OFTEN):
            function()

    return run


def actions(recipe: Recipe, folder: Path) -> dict[tuple[str, str], Action]:
    """What is timed, by case and implementation; every rank must do it."""
    steps = start(recipe)
    batches = next(steps.data.batches(steps, 0, 1))
    watchdog = Watchdog(recipe.run.dir, steps.mesh, recipe.run.hang_seconds)
    watchdog.folder.mkdir(parents=True, exist_ok=True)
    guard = full_guard(recipe)
    judge = lambda: guard.judge({"loss": 4.0, "grad_norm": 1.0})
    return {
        (f"{PAIRS} pairs of steps", "emu3"): step_pairs(steps, batches, guard, watchdog),
        (f"{OFTEN} judgements, window full", "emu3"): repeat(judge),
        (f"{OFTEN} judgements, window full", "clocked"): clocked(repeat(judge)),
        (f"{OFTEN} heartbeats", "emu3"): repeat(lambda: watchdog._beat()),
        ("comparing replicas", "emu3"): lambda: drifted(named_tensors(steps.engine.live)),
        ("a save", "megatron-core"): lambda: megatron_save(steps, folder),
        ("a save", "emu3"): lambda: steps.save(folder / "ours", 1),
    }


def clocked(action: Action) -> Action:
    def run() -> None:
        with Communication(HostClock()):
            action()

    return run


def follow(recipe: Recipe, folder: Path, port: int) -> None:
    """The second process: it does what the first is timed at."""
    enter(1, port)
    todo = list(actions(recipe, folder).values())
    while (number := tell(None)) != LEAVE:
        todo[number]()
    parallel.stop()


def tell(number: int | None) -> int:
    """The number of the action to do next, from the first process to the other."""
    told = [number]
    dist.broadcast_object_list(told)
    assert told[0] is not None
    return told[0]


def enter(rank: int, port: int) -> None:
    place = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})


def led(number: int, action: Action) -> Action:
    def run() -> Any:
        tell(number)
        return action()

    return run


def cases(quick: bool) -> Iterator[Case]:
    folder = Path(tempfile.mkdtemp())
    make_packs(folder)
    pack_shards([folder / "shard"], folder / "wide.pack", 704, vocabulary=VOCABULARY)
    source = f"data.sources=[{{pack: {folder / 'wide.pack'}}}]"
    given = [f"run.dir={folder / 'run'}", source, f"model.codes={VOCABULARY.num_codes}"]
    recipe = load_recipe(Recipe, "stage1-tiny-cpu", [*given, "batch.micro_size=1"])
    for ranks in (1, 2):
        if ranks == 2:
            port = free_port()
            other = _context.Process(target=follow, args=(recipe, folder, port))
            other.start()
            enter(0, port)
        todo = actions(recipe, folder)
        for number, ((case, implementation), action) in enumerate(todo.items()):
            run = led(number, action) if ranks == 2 else action
            figures = {"figures": in_pairs} if "pairs" in case else {}
            # Python's own trace of memory is no choice: ending it crashes Python 3.11 now and then
            # when a thread of gloo lets go of a tensor at that moment (CPython issue 128679).
            yield Case(f"{ranks} ranks: {case}", implementation, run, tensors=True, **figures)
        if ranks == 2:
            tell(LEAVE)
            other.join()
        parallel.stop()
    yield Case(
        "hashing what a save wrote",
        "emu3",
        lambda: hash_all(folder / "ours" / "step-00000001"),
        lambda size, least: {"bytes": size, "gigabytes_per_second": size / least / 1e9},
    )


if __name__ == "__main__":
    main(cases, repeats=3)
