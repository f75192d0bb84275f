"""A run that is killed again and again, wherever it is: in the end the same bytes."""

import json
import os
import random
import signal
import sys

import pytest

from emu3_megatron.config.prepare import PrepareRecipe
from emu3_megatron.prepare.pipeline import prepare

# Of the interpreter's audit events: before a file is opened, renamed or removed.
OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


@pytest.fixture
def recipe(tmp_path, tokenizer, add_photo):
    """A function that makes a recipe over photos and text."""
    for i in range(6):
        photos = add_photo(f"photo{i}", f"number {i}", size=(64, 48 + 16 * (i % 2)), seed=i)
    (tmp_path / "texts").mkdir()
    lines = (json.dumps({"text": f"line {i} of some text"}) for i in range(60))
    (tmp_path / "texts" / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tokenizer.save(tmp_path / "tokenizer")

    def make(out):
        images = {"source": photos, "min_side": 32, "min_quality": 0, "ocr": False, "area": 1536}
        return PrepareRecipe.model_validate(
            {
                "out": tmp_path / out,
                "model": "emu3-tiny",
                "tokenizer": tmp_path / "tokenizer",
                "shard_bytes": 800,
                "images": images,
                "text": {"source": tmp_path / "texts", "range_bytes": 500},
                "packs": [{"context": 256, "kinds": ["images", "text"]}],
                "run": {"executor": "local", "task_items": 2},
            }
        )

    return make


def contents(folder):
    """Every file that stays, by its path; what went into scores and parts is beside the point."""
    kept = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        p.relative_to(folder): p.read_bytes()
        for p in kept
        if ".work" not in p.parts and p.name != "report.json"
    }


def run_in_child(recipe, operations):
    """Prepare in a forked process; returns the signal that ended it, or 0.

    Args:
        operations: on files of the output folder after which the process kills itself.
    """
    if child := os.fork():
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    code = 1
    try:
        sys.addaudithook(kill_after(operations, str(recipe.out)))
        prepare(recipe, ["images", "text"])
        code = 0
    finally:
        os._exit(code)


def kill_after(operations, folder):
    left = operations

    def hook(event, arguments):
        nonlocal left
        if event in OPERATIONS and str(arguments[0]).startswith(folder):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def test_whatever_it_was_doing_when_it_was_killed(recipe, tmp_path):
    prepare(recipe("whole"), ["images", "text"])
    moments, kills = random.Random(0), 0

    for number, first in enumerate(range(15, 270, 50)):  # a whole run does 265 operations
        moment, folder = first, f"killed{number}"
        while run_in_child(recipe(folder), moment) == signal.SIGKILL:
            moment = moments.randint(1, 150)
            kills += 1

        assert contents(tmp_path / folder) == contents(tmp_path / "whole")
        assert not list((tmp_path / folder).glob(".work/*-parts"))

    assert kills > 5
