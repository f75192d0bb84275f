"""A run killed again and again ends with the weights of one that never was.

`EMU3_KILLS` and `EMU3_MIXED_KILLS` set how often.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable

import pytest
from support.faults import Job, events, latest, nothing, weights

from emu3_megatron.config import Recipe
from emu3_megatron.runs.lock import NAME, STALE_SECONDS

KILLS = int(os.environ.get("EMU3_KILLS", "200"))
MIXED = int(os.environ.get("EMU3_MIXED_KILLS", "50"))
RUNS, MIXED_RUNS = 8, 2  # of as many kills each, every one with a seed of its own
LIMIT = 4.0  # run.hang_seconds of the mixed ones; they are suspended for longer
WAYS_TO_RUN = {"steps": 0, "save_every": 5, "keep": 3, "log_every": 50}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(RUNS))
def test_two_hundred_kills_change_no_bit(seed, recipe, tmp_path):
    kills = KILLS // RUNS
    settings = {**WAYS_TO_RUN, "steps": steps_for(kills), "seed": seed}
    straight, killed = both(recipe, settings, tmp_path)
    random_numbers = random.Random(seed)

    compare(straight, killed, lambda: [kill_once(killed, random_numbers) for _ in range(kills)])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(MIXED_RUNS))
def test_kills_of_suspended_jobs_on_slow_disks_in_containers_change_no_bit(seed, recipe, tmp_path):
    kills = MIXED // MIXED_RUNS
    settings = {
        **WAYS_TO_RUN,
        "steps": steps_for(kills),
        "seed": 100 + seed,
        "hang_seconds": LIMIT,
    }
    straight, killed = both(recipe, settings, tmp_path)
    random_numbers = random.Random(100 + seed)

    def kill_all() -> list[bool]:
        left = []
        for _ in range(kills):
            fault, suspends = random_numbers.choice(MIXTURE)
            left.append(kill_once(killed, random_numbers, fault, suspends))
            forget_the_lock(killed)
        return left

    compare(straight, killed, kill_all)


def steps_for(kills: int) -> int:
    """A kill lets five or ten steps through; a quick machine, more of them."""
    return 9 * kills + 20


def both(
    recipe: Callable[..., Recipe], settings: dict, folder: os.PathLike
) -> tuple[Recipe, Recipe]:
    """The run that is left alone, and the one that is killed."""
    model = {"dropout": 0.1}
    straight = recipe(run={**settings, "dir": str(folder / "straight")}, model=model)
    return straight, recipe(run=settings, model=model)


def compare(straight: Recipe, killed: Recipe, kill_all: Callable[[], list[bool]]) -> None:
    began = time.monotonic()
    ends = Job(straight, ranks=2).wait(3600)
    alone = time.monotonic() - began
    assert [end.code for end in ends] == [0, 0], ends[0].said

    began = time.monotonic()
    left = kill_all()
    ends = Job(killed, ranks=2).wait(3600)
    together = time.monotonic() - began

    assert [end.code for end in ends] == [0, 0], ends[0].said
    last = f"checkpoints/step-{killed.run.steps:08d}"
    assert weights(killed.run.dir / last) == weights(straight.run.dir / last)
    figures = {
        "seed": killed.run.seed,
        "kills": len(left),
        "left_to_the_launcher": sum(left),
        "steps": killed.run.steps,
        "seconds_alone": round(alone, 1),
        "seconds_with_kills": round(together, 1),
        "effective_time_ratio": round(alone / together, 3),
    }
    print(json.dumps(figures))


def kill_once(
    recipe: Recipe,
    random_numbers: random.Random,
    fault: Callable[[], None] = nothing,
    suspends: bool = False,
) -> bool:
    """Start the job, and kill one rank or both at a random moment.

    Returns whether the other was left for a launcher to end, for which this test stands in: only a
    rank that waits at the start for one that never comes may be.
    """
    folder, steps = recipe.run.dir, recipe.run.steps
    nearly_done = (folder / "checkpoints" / "latest").exists() and latest(folder) >= steps - 10
    assert not nearly_done, "a quicker machine needs more steps for as many kills"
    job = Job(recipe, ranks=2, fault=fault)
    saved = len(events(folder, "durable"))
    moment = random_numbers.uniform(0, 1.5)
    # Three in four are killed around their second save, so that the run gets on.
    if random_numbers.random() < 0.75:
        job.until(lambda: len(events(folder, "durable")) > saved, seconds=300)
        moment = random_numbers.uniform(0, 0.3)
    if suspends:
        suspend(job, random_numbers.uniform(0.5, 1.5) * LIMIT)
    time.sleep(moment)
    victims = random_numbers.choice([job.processes[:1], job.processes[1:], job.processes])
    for process in victims:
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    ends = job.wait(10)
    said = "\n".join(end.said for end in ends)
    assert "no progress" not in said, said
    left = [rank for rank, end in enumerate(ends) if end.code is None]
    for rank in left:
        heartbeat = folder / "ranks" / f"{rank:05d}.json"
        began = heartbeat.exists() and json.loads(heartbeat.read_text(encoding="utf-8"))["pid"]
        assert began != job.processes[rank].pid, "a rank that had begun did not end with the other"
    return bool(left)


def suspend(job: Job, seconds: float) -> None:
    """Stop all ranks for a while, as Slurm's suspend does."""
    for number, pause in ((signal.SIGSTOP, seconds), (signal.SIGCONT, 0.0)):
        for process in job.processes:
            if process.is_alive():
                os.kill(process.pid, number)
        time.sleep(pause)


def in_a_container() -> None:
    """Process numbers that mean nothing to the next start: its lock is judged by heartbeat."""
    from emu3_megatron.runs import processes

    processes._namespace = lambda: f"pid:[{os.getpid()}]"


def on_a_slow_disk() -> None:
    """Each tensor written, file read and flush takes a while."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from support.faults import slowed

    from emu3_megatron import manifest

    slowed(filesystem_async, "_write_item", 0.01)
    slowed(manifest, "_fault", 0.2)
    slowed(os, "fsync", 0.05)


def on_a_slow_disk_in_a_container() -> None:
    on_a_slow_disk()
    in_a_container()


# What a job suffers besides the kill, and whether it is suspended.
MIXTURE = [
    (nothing, True),
    (on_a_slow_disk, False),
    (in_a_container, False),
    (in_a_container, True),
    (on_a_slow_disk_in_a_container, True),
]


def forget_the_lock(recipe: Recipe) -> None:
    """As if a minute had gone by, after which a job that cannot be seen counts as dead."""
    path = recipe.run.dir / NAME
    if path.exists():
        before = time.time() - 2 * STALE_SECONDS
        os.utime(path, (before, before))
