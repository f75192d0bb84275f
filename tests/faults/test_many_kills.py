"""A run that is killed again and again ends with the weights of one that never was."""

import json
import os
import random
import signal
import time

import pytest
from support.faults import Job, events, latest, run_job, weights

STEPS = 600


@pytest.mark.slow
def test_two_hundred_kills_change_no_bit(recipe, tmp_path):
    kills = int(os.environ.get("EMU3_KILLS", "200"))
    settings = {"steps": STEPS, "save_every": 5, "keep": 3, "log_every": 50}
    straight = recipe(run={**settings, "dir": str(tmp_path / "straight")}, model={"dropout": 0.1})
    began = time.monotonic()
    ends = run_job(straight, ranks=2)
    alone = time.monotonic() - began
    assert [end.code for end in ends] == [0, 0], ends[0].said

    killed = recipe(run=settings, model={"dropout": 0.1})
    random_numbers = random.Random(0)
    began = time.monotonic()
    for _ in range(kills):
        if not kill_once(killed, random_numbers):
            break
    ends = Job(killed, ranks=2).wait(600)
    together = time.monotonic() - began

    assert [end.code for end in ends] == [0, 0], ends[0].said
    last = f"checkpoints/step-{STEPS:08d}"
    assert weights(killed.run.dir / last) == weights(straight.run.dir / last)
    done = len(events(killed.run.dir, "requested"))
    print(
        json.dumps(
            {
                "kills": kills,
                "steps": STEPS,
                "seconds_alone": round(alone, 1),
                "seconds_with_kills": round(together, 1),
                "effective_time_ratio": round(alone / together, 3),
                "saves": done,
            }
        )
    )


def kill_once(recipe, random_numbers):
    """Start the job, and kill one rank or both at a random moment; False once it is done."""
    before = latest(recipe.run.dir) if (recipe.run.dir / "checkpoints" / "latest").exists() else 0
    if before >= STEPS - 5:
        return False
    job = Job(recipe, ranks=2)
    started = len(events(recipe.run.dir, "requested"))
    moment = random_numbers.uniform(0, 1.5)
    # Three in four are killed after their first save has begun, so that the run gets on.
    if random_numbers.random() < 0.75:
        job.until(lambda: len(events(recipe.run.dir, "requested")) > started)
        moment = random_numbers.uniform(0, 0.1)
    time.sleep(moment)
    victims = random_numbers.choice([job.processes[:1], job.processes[1:], job.processes])
    for process in victims:
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    job.wait(30)
    return True
