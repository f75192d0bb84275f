"""Guided images on a CPU: fp32, one thread, the contestants in turn, round after round.

Ratios are of the least CPU times: on a machine with other work they say more than the clock. Before
the rounds all draw greedily, and `same_codes` is the share of codes that are those of the first.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from generation_engine import Engine, Grid, Task, Timing, timed
from generation_peers import ByGenerate, Earlier, PlainLoop, in_transformers

from emu3_megatron import parallel
from emu3_megatron.config import ModelConfig

EARLIER = "5c2150c"  # the last commit before decode steps of plain torch operations
# Mixed as Emu3 mixes them, one area in many aspects; and areas from 64 to 256 codes.
ASPECTS: list[Grid] = [
    *((16, 16), (12, 21), (21, 12), (14, 18)),
    *((18, 14), (10, 25), (25, 10), (15, 17)),
]
SIZES: list[Grid] = [(16, 16), (8, 8), (12, 20), (20, 12), (4, 24), (10, 10), (24, 6), (13, 17)]
ONE: dict[str, list[Grid]] = {"emu3-tiny": [(32, 32), (20, 20)], "emu3-mini": [(12, 12)]}
MANY = {
    "8 mixed aspects": ASPECTS,
    "8 mixed sizes": SIZES,
    "8 grids of 16x16": [(16, 16)] * 8,
}
Run = Callable[[Task], Timing]


@dataclass(frozen=True)
class Entry:
    """A contestant and its task; the first of a case is what the others are compared with."""

    implementation: str
    run: Run
    task: Task


class Contestants:
    """All that draw with the weights of a model."""

    def __init__(self, preset: str, folder: Path):
        model = ModelConfig(preset=preset)
        engine = Engine(model)
        theirs = in_transformers(engine, model)
        self.ours: Run = partial(timed, engine)
        self.earlier = Earlier(EARLIER, model, folder)
        self.peers: dict[str, Run] = {
            "transformers.generate": partial(timed, ByGenerate(theirs, engine.vocabulary)),
            "batched loop": partial(timed, PlainLoop(theirs, engine.vocabulary)),
        }

    def close(self) -> None:
        self.earlier.close()

    def one(self, grid: Grid) -> list[Entry]:
        runs = {"emu3": self.ours, f"emu3 at {EARLIER}": self.earlier.timed, **self.peers}
        return [Entry(name, run, Task([grid])) for name, run in runs.items()]

    def many(self, grids: Sequence[Grid]) -> list[Entry]:
        return [
            Entry(f"{name}, {how}", run, Task(grids, together=how == "together"))
            for name, run in (("emu3", self.ours), (f"emu3 at {EARLIER}", self.earlier.timed))
            for how in ("together", "one by one")
        ]


def contest(case: str, entries: Sequence[Entry], rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each entry."""
    greedy = [entry.run(replace(entry.task, greedy=True)).codes for entry in entries]
    found: list[list[Timing]] = [[] for _ in entries]
    for seed in range(rounds):
        for entry, timings in zip(entries, found, strict=True):
            timings.append(entry.run(replace(entry.task, seed=seed)))
    least = [min(timing.cpu_seconds for timing in timings) for timings in found]
    for i, entry in enumerate(entries):
        walls = [timing.seconds for timing in found[i]]
        same = [a == b for a, b in zip(greedy[0], greedy[i], strict=True)]
        yield {
            "case": case,
            "implementation": entry.implementation,
            "tokens": entry.task.tokens,
            "median_ms": 1e3 * statistics.median(walls),
            "min_ms": 1e3 * min(walls),
            "max_ms": 1e3 * max(walls),
            "cpu_min_ms": 1e3 * least[i],
            "cpu_max_ms": 1e3 * max(timing.cpu_seconds for timing in found[i]),
            "tokens_per_cpu_second": entry.task.tokens / least[i],
            "ratio": least[i] / least[0],
            "same_codes": statistics.mean(same),
        }


def cpu_rows(quick: bool) -> Iterator[dict[str, Any]]:
    torch.set_num_threads(1)
    parallel.start(1, 1).seed(0, 0)
    for preset, grids in {"emu3-tiny": [(4, 4)]}.items() if quick else ONE.items():
        with (
            tempfile.TemporaryDirectory() as folder,
            closing(Contestants(preset, Path(folder))) as contestants,
        ):
            for grid in grids:
                name = f"{preset}, {grid[0]}x{grid[1]}"
                yield from contest(name, contestants.one(grid), 1 if quick else 3)
            if preset == "emu3-tiny":
                for name, many in {"2 mixed": SIZES[:2]}.items() if quick else MANY.items():
                    entries = contestants.many(many)
                    yield from contest(f"{preset}, {name}", entries, 1 if quick else 3)
    parallel.stop()
