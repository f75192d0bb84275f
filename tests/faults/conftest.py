from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.faults import run_job
from support.tiny import make_packs, tiny_recipe

from emu3_megatron.config import Recipe


@pytest.fixture(scope="session")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_packs(tmp_path_factory.mktemp("packs"))


@pytest.fixture
def recipe(packs: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe of eight steps, saved every second, in this test's folder."""

    def make(run: dict[str, Any] | None = None, **sections: Any) -> Recipe:
        run = {"steps": 8, "save_every": 2, "keep": 9, **(run or {})}
        return tiny_recipe(packs, tmp_path / "run", run=run, **sections)

    return make


@pytest.fixture(scope="session")
def untroubled(packs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without a fault, by one process."""
    folder = tmp_path_factory.mktemp("untroubled") / "run"
    (end,) = run_job(tiny_recipe(packs, folder, run={"steps": 8, "save_every": 2, "keep": 9}))
    assert end.code == 0, end.said
    return folder
