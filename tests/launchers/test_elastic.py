"""torchrun's elastic launch: a node dies, the others go on, and a spare one joins them."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from support.faults import losses
from support.ports import free_port
from support.processes import run_processes
from support.tiny import make_packs, tiny_recipe

from emu3_megatron.cli import main

STEPS = 150
TESTS = Path(__file__).parents[1]


class Agent:
    """torchrun's agent of a node with one process, for a job of one node or two."""

    def __init__(self, recipe: Path, port: int, name: str):
        self.output = recipe.parent / name
        waits = "last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3"
        command = [sys.executable, str(TESTS.parent / "tools" / "torchrun.py"), "--nnodes=1:2"]
        command += ["--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d"]
        command += ["--rdzv-id=elastic", f"--rdzv-endpoint=127.0.0.1:{port}"]
        command += [f"--rdzv-conf={waits}", "--local-addr=127.0.0.1"]
        command += ["-m", "emu3_megatron", "train", str(recipe)]
        path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        with self.output.open("w", encoding="utf-8") as output:
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)

    def kill(self) -> None:
        """As when the node loses its power: the agent and all that it started."""
        agent = psutil.Process(self.process.pid)
        for process in [agent, *agent.children(recursive=True)]:
            process.kill()
        self.process.wait()

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8")


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def until(condition: Callable[[], bool], agents: list[Agent], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        ended = [agent for agent in agents if agent.process.poll() is not None]
        assert not ended, ended[0].said()
        assert time.monotonic() < end, "\n".join(agent.said() for agent in agents)
        time.sleep(0.1)


def sizes(run: Path) -> list[int]:
    """On how many data parallel ranks each step was taken, in the order in which they were."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return [row["data_size"] for row in rows if "data_size" in row]


@pytest.mark.slow
def test_a_spare_node_joins_and_the_samples_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    pack = make_packs(tmp_path)
    file = tmp_path / "recipe.yaml"
    run = tmp_path / "elastic"
    recipe = tiny_recipe(
        pack, run, run={"steps": STEPS, "save_every": 10}, hooks=[{"kind": "support.pacing:Slowly"}]
    )
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    port = free_port()

    stays = Agent(file, port, "stays")  # it keeps the rendezvous, too
    until(lambda: is_open(port), [stays])
    leaves = Agent(file, port, "leaves")
    agents = [stays, leaves]
    try:
        until(lambda: sizes(run)[-25:] == [2] * 25, agents)
        leaves.kill()
        until(lambda: sizes(run)[-15:] == [1] * 15, [stays])
        agents.append(Agent(file, port, "spare"))
        until(lambda: sizes(run)[-15:] == [2] * 15, [stays, agents[-1]])
        for agent in (stays, agents[-1]):
            assert agent.process.wait(timeout=120) == 0, agent.said()
    finally:
        for agent in agents:
            if agent.process.poll() is None:
                agent.kill()

    run_processes(main, 1, ["train", str(file), "hooks=[]", f"run.dir={tmp_path / 'alone'}"])
    together, undisturbed = losses(run), losses(tmp_path / "alone")
    assert list(undisturbed) == sorted(together) == list(range(1, STEPS + 1))
    for step, loss in undisturbed.items():
        assert together[step] == pytest.approx(loss, rel=1e-4), step
