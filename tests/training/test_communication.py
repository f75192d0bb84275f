"""Time in collectives: what is waited for shows up, and torch is as it was afterwards."""

import json
import os
import time

import torch
import torch.distributed as dist
from support.faults import run_job
from support.processes import run_processes
from support.tiny import make_packs, tiny_recipe

from emu3_megatron.runs.communication import Communication, HostClock
from emu3_megatron.training.trainer import DecoderTrainer


def rank_1_comes_a_second_late_to_step_3() -> None:
    step = DecoderTrainer.step

    def late(self, number, batches, judge):
        if number == 3 and os.environ["RANK"] == "1":
            time.sleep(1)
        return step(self, number, batches, judge)

    DecoderTrainer.step = late  # type: ignore[method-assign]


def test_waiting_for_a_late_rank_shows_in_its_step(tmp_path):
    recipe = tiny_recipe(make_packs(tmp_path), tmp_path / "run", run={"steps": 4, "log_every": 1})
    ends = run_job(recipe, ranks=2, fault=rank_1_comes_a_second_late_to_step_3)
    assert [end.code for end in ends] == [0, 0], ends[0].said

    rows = [json.loads(line) for line in (recipe.run.dir / "metrics.jsonl").open(encoding="utf-8")]
    most, least = (
        [row[name] for row in rows]
        for name in ("communication_seconds", "communication_seconds_least")
    )
    # The late rank waits for nobody: the difference is waiting, not sending.
    assert most[2] - least[2] > 0.5
    assert most[2] < rows[2]["step_seconds"]


def seconds_of_collectives() -> dict[str, float]:
    dist.init_process_group("gloo")
    late = 0.4 * dist.get_rank()
    with Communication(HostClock()) as communication:
        found = {}
        for name, collective in COLLECTIVES.items():
            time.sleep(late)
            collective()
            found[name] = communication.take_seconds()
    dist.barrier()
    found["afterwards"] = communication.take_seconds()
    return found


def exchange_with_the_other() -> None:
    peer = 1 - dist.get_rank()
    here, there = torch.zeros(2), torch.zeros(2)
    operations = [dist.P2POp(dist.isend, here, peer), dist.P2POp(dist.irecv, there, peer)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()


COLLECTIVES = {
    "all_reduce": lambda: dist.all_reduce(torch.zeros(2)),
    "all_gather": lambda: dist.all_gather_into_tensor(torch.zeros(4), torch.zeros(2)),
    "reduce_scatter": lambda: dist.reduce_scatter_tensor(torch.zeros(2), torch.zeros(4)),
    "asynchronous": lambda: dist.all_reduce(torch.zeros(2), async_op=True).wait(),
    "point to point": exchange_with_the_other,
    "objects": lambda: dist.all_gather_object([None, None], "word"),
    "barrier": dist.barrier,
}


def test_every_kind_of_collective_counts_and_nothing_does_afterwards():
    waiting, _ = run_processes(seconds_of_collectives, 2)

    assert waiting.pop("afterwards") == 0
    assert {name for name, seconds in waiting.items() if seconds > 0.1} == set(COLLECTIVES)
