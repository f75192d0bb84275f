"""What a run says of itself, and whose state its checkpoints hold."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from emu3_megatron.errors import InputError
from emu3_megatron.runs.interfaces import Hook, Run


class Rollouts:
    """A Data whose state is a number and a tensor."""

    def state_dict(self, saved: Any = None) -> dict[str, Any]:
        return {"given": 3, "advantages": torch.zeros(2)}


class Named(Hook):
    def __init__(self, name: str):
        self.name = name


@pytest.fixture
def run(mesh, tmp_path: Path) -> Run:
    none: Any = None
    run = Run(tmp_path, 1, mesh, none, none, none, none, lambda: True, none, {"recipe": {}})
    run.trainer, run.data = none, Rollouts()
    return run


def test_run_json_holds_the_datas_state_without_tensors(run):
    run.describe()

    written = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    assert written == {"recipe": {}, "data": {"given": 3}}


def test_hooks_hold_state_under_names_of_their_own(run):
    run.hooks = [Named("one"), Named("other")]
    assert list(run.owners()) == ["trainer", "data", "one", "other"]

    run.hooks = [Named("one"), Named("one")]
    with pytest.raises(InputError, match="hooks: Named has the name 'one', which is taken"):
        run.owners()

    run.hooks = [Named("data")]
    with pytest.raises(InputError, match="'data', which is taken"):
        run.owners()
