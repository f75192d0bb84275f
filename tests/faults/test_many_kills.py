"""A run killed again and again ends with the weights of one that never was."""

import json
import os
import random
import signal
import time

import pytest
from support.faults import Job, events, latest, weights

KILLS = int(os.environ.get("EMU3_KILLS", "200"))
RUNS = 8  # of as many kills each, every one with a seed of its own
STEPS = 9 * KILLS // RUNS  # a kill lets five or ten through; a quick machine, more of them


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(RUNS))
def test_two_hundred_kills_change_no_bit(seed, recipe, tmp_path):
    settings = {"steps": STEPS, "save_every": 5, "keep": 3, "log_every": 50, "seed": seed}
    straight = recipe(run={**settings, "dir": str(tmp_path / "straight")}, model={"dropout": 0.1})
    began = time.monotonic()
    ends = Job(straight, ranks=2).wait(3600)
    alone = time.monotonic() - began
    assert [end.code for end in ends] == [0, 0], ends[0].said

    killed = recipe(run=settings, model={"dropout": 0.1})
    random_numbers = random.Random(seed)
    began = time.monotonic()
    left = [kill_once(killed, random_numbers) for _ in range(KILLS // RUNS)]
    ends = Job(killed, ranks=2).wait(3600)
    together = time.monotonic() - began

    assert [end.code for end in ends] == [0, 0], ends[0].said
    last = f"checkpoints/step-{STEPS:08d}"
    assert weights(killed.run.dir / last) == weights(straight.run.dir / last)
    figures = {
        "seed": seed,
        "kills": len(left),
        "left_to_the_launcher": sum(left),
        "steps": STEPS,
        "seconds_alone": round(alone, 1),
        "seconds_with_kills": round(together, 1),
        "effective_time_ratio": round(alone / together, 3),
    }
    print(json.dumps(figures))


def kill_once(recipe, random_numbers):
    """Start the job, and kill one rank or both at a random moment.

    Returns whether the other was left for a launcher to end, for which this test stands in: only a
    rank that waits at the start for one that never comes may be.
    """
    folder = recipe.run.dir
    nearly_done = (folder / "checkpoints" / "latest").exists() and latest(folder) >= STEPS - 10
    assert not nearly_done, "a quicker machine needs more steps for as many kills"
    job = Job(recipe, ranks=2)
    saved = len(events(folder, "durable"))
    moment = random_numbers.uniform(0, 1.5)
    # Three in four are killed around their second save, so that the run gets on.
    if random_numbers.random() < 0.75:
        job.until(lambda: len(events(folder, "durable")) > saved, seconds=300)
        moment = random_numbers.uniform(0, 0.3)
    time.sleep(moment)
    victims = random_numbers.choice([job.processes[:1], job.processes[1:], job.processes])
    for process in victims:
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    left = [rank for rank, end in enumerate(job.wait(10)) if end.code is None]
    for rank in left:
        heartbeat = folder / "ranks" / f"{rank:05d}.json"
        began = heartbeat.exists() and json.loads(heartbeat.read_text(encoding="utf-8"))["pid"]
        assert began != job.processes[rank].pid, "a rank that had begun did not end with the other"
    return bool(left)
