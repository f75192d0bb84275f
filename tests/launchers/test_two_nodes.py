"""torchrun with an agent for each of two nodes, which meet over the network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml
from support.ports import free_port
from support.processes import run_processes
from support.tiny import make_packs, tiny_recipe

from emu3_megatron.cli import main


def losses_of(run: Path) -> list[float]:
    return [
        json.loads(line)["loss"]
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def start_agent(recipe: Path, port: int, run: Path) -> subprocess.Popen:
    agent = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=two-nodes"]
    command = [sys.executable, "-m", "torch.distributed.run", *agent]
    command += [f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1"]
    command += ["-m", "emu3_megatron", "train", str(recipe), "parallel.tensor=2", f"run.dir={run}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def test_two_nodes_train_as_one(tmp_path: Path) -> None:
    recipe = tiny_recipe(make_packs(tmp_path), tmp_path / "one", run={"steps": 3})
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    port = free_port()

    agents = [start_agent(file, port, tmp_path / "two") for _ in range(2)]
    for agent in agents:
        _, errors = agent.communicate(timeout=120)
        assert agent.returncode == 0, errors

    run_processes(main, 2, ["train", str(file), "parallel.tensor=2"])
    assert losses_of(tmp_path / "two") == losses_of(tmp_path / "one")
