"""examples/dialogues/run-digits.sh: questions about real pictures, and how answers are counted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.documented import ROOT

EXAMPLE = ROOT / "examples" / "dialogues"


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8"
    )


def test_answers_are_compared_with_those_about_another_image(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(EXAMPLE)
    from asked import Asked, score

    looks = [Asked("Which?", digit, digit, None) for digit in "1234"]
    guesses = [Asked("Odd?", right, "odd", None) for right in ("odd", "even")]

    found = score([*looks, *guesses])

    assert found["questions"] == 6
    assert found["exact"] == round(5 / 6, 4)
    assert found["by_question"] == {
        "Which?": {"questions": 4, "exact": 1.0, "another_image": 0.0},
        "Odd?": {"questions": 2, "exact": 0.5, "another_image": 0.5},
    }


def test_held_out_pictures_are_not_trained_on(tmp_path: Path):
    done = run(tmp_path, "python", str(EXAMPLE / "digits.py"), "digits")

    assert done.returncode == 0, done.stderr
    train, held_out = (
        json.loads((tmp_path / "digits" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("train", "held-out")
    )
    asked = [Path(row["image"]) for row in held_out]
    originals = {Path(row["image"]).stem[:4] for row in train}
    assert len(set(asked)) == 359
    assert {asked.count(image) for image in set(asked)} == {4}
    assert len(originals) == 1797 - 359
    assert originals.isdisjoint(image.stem[:4] for image in asked)


@pytest.mark.slow
def test_a_short_training_answers_by_what_the_pictures_show(tmp_path: Path):
    programs = {"emu3": "-m emu3_megatron", "torchrun": "-m torch.distributed.run"}
    (tmp_path / "bin").mkdir()
    for name, module in programs.items():
        path = tmp_path / "bin" / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n', encoding="utf-8")
        path.chmod(0o755)

    done = run(tmp_path, "bash", str(EXAMPLE / "run-digits.sh"), "run.steps=120")

    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads((tmp_path / "runs/digits/answers.json").read_text(encoding="utf-8"))
    assert answers["questions"] == 4 * 359
    assert answers["exact"] >= answers["another_image"] + 0.1
    assert (tmp_path / "runs/digits/answers.png").read_bytes().startswith(b"\x89PNG")
