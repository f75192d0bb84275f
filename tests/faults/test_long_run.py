"""Memory and open files over two thousand steps."""

import gc
import json
from functools import partial
from pathlib import Path
from statistics import median

import psutil
import pytest
from support.faults import Job, events
from support.tiny import make_packs

from emu3_megatron.training.trainer import DecoderTrainer

STEPS, EVERY = 2_000, 10
NOTED = "memory", "files", "processes"
# Of the allocator's own; two thousand steps that kept a kilobyte each would be as much.
NOISE = 2_000_000


def watch(report: Path) -> None:
    """Note memory and descriptors of the rank before every tenth step."""
    process, taken = psutil.Process(), DecoderTrainer.step

    def step(self, number, batches, judge):
        if number % EVERY == 0:
            gc.collect()
            row = number, process.memory_info().rss, process.num_fds(), len(process.children())
            with report.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        return taken(self, number, batches, judge)

    DecoderTrainer.step = step


@pytest.mark.slow
def test_two_thousand_steps_with_two_hundred_saves_and_validations_keep_nothing(recipe, tmp_path):
    held_out = make_packs(tmp_path, seed=1)
    report = tmp_path / "memory.jsonl"
    long = recipe(
        run={"steps": STEPS, "save_every": EVERY, "keep": 2, "log_every": EVERY},
        batch={"size": 2, "micro_size": 2},
        data={"workers": 1},
        validation={"every": EVERY, "batches": 2, "sources": [{"pack": str(held_out)}]},
    )
    (end,) = Job(long, fault=partial(watch, report)).wait(3600)

    assert end.code == 0, end.said
    assert len(events(long.run.dir, "durable")) == STEPS // EVERY
    rows = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    middle = len(rows) // 2
    before, after = rows[middle // 2 : middle], rows[middle + middle // 2 :]
    of = lambda part, column: median(row[column] for row in part)
    grown = {name: of(after, i) - of(before, i) for i, name in enumerate(NOTED, start=1)}
    print(json.dumps(grown))
    assert grown["memory"] < NOISE
    assert grown["files"] == grown["processes"] == 0
