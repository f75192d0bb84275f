"""The losses of a small run as they were committed: a refactor leaves them as they are.

They hold to the bit where processor, torch, its instruction set and Megatron-core are those they
were taken with, elsewhere to 1e-5. After a change that is meant to change them:

    python tests/training/test_committed_losses.py
"""

import json
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from support.processes import run_processes
from support.steps import losses
from support.tiny import make_packs, tiny_recipe

COMMITTED = Path(__file__).with_suffix(".json")


def taken_with() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return {
        "cpu": next((line.split(": ")[1] for line in lines if line.startswith("model name")), ""),
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "megatron-core": version("megatron-core"),
    }


def train(folder: Path) -> list[float]:
    """Twelve steps with dropout, one thread, one process."""
    recipe = tiny_recipe(make_packs(folder), folder, model={"dropout": 0.1})
    return run_processes(losses, 1, recipe, 12)[0]


def test_losses_are_those_that_were_committed(tmp_path: Path) -> None:
    committed = json.loads(COMMITTED.read_text(encoding="utf-8"))

    found = train(tmp_path)

    if taken_with() == committed["taken_with"]:
        assert found == committed["losses"]
    assert found == pytest.approx(committed["losses"], rel=1e-5)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        values = {"taken_with": taken_with(), "losses": train(Path(folder))}
    COMMITTED.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
