"""torchrun that ends as its run does."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from support.faults import events, latest
from support.tiny import make_packs, tiny_recipe

LAUNCHER = Path(__file__).parents[2] / "tools" / "torchrun.py"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    run = {"steps": 100_000, "save_every": 100_000}
    recipe = tiny_recipe(make_packs(tmp_path), tmp_path / "run", run=run)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    return path


def launch(ranks: int, *arguments: object) -> subprocess.Popen[str]:
    options = ["--standalone", f"--nproc-per-node={ranks}", "-m", "emu3_megatron", "train"]
    command = [sys.executable, LAUNCHER, *options, *arguments]
    return subprocess.Popen(
        [*map(str, command)], stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def test_a_run_that_is_told_to_leave_saves_and_its_launcher_ends_with_75(recipe, tmp_path):
    folder = tmp_path / "run"
    launcher = launch(2, recipe)
    wait_for(lambda: (folder / "metrics.jsonl").exists(), launcher)
    launcher.send_signal(signal.SIGUSR1)
    _, said = launcher.communicate(timeout=120)

    assert launcher.returncode == 75, said
    assert latest(folder) == events(folder, "left")[0]["step"]


def test_ctrl_c_saves_and_says_so_in_a_few_lines(recipe, tmp_path):
    folder = tmp_path / "run"
    launcher = launch(2, recipe)
    wait_for(lambda: (folder / "metrics.jsonl").exists(), launcher)
    launcher.send_signal(signal.SIGINT)
    _, said = launcher.communicate(timeout=120)

    assert launcher.returncode == 130, said
    assert latest(folder) == events(folder, "left")[0]["step"]
    after = said.partition("Ctrl-C")[2]
    assert "Traceback" not in after
    assert len(after.splitlines()) < 10, after


def test_a_mistake_ends_with_2(recipe):
    launcher = launch(1, recipe, "run.step=3")
    _, said = launcher.communicate(timeout=120)

    assert launcher.returncode == 2, said
    assert "did you mean steps?" in said


def wait_for(condition, launcher: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < end, "the run did not get there"
        time.sleep(0.05)
