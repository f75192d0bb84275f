"""examples/preferences: what DPO on a rule's preference changes, with one command."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "preferences"


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8"
    )


def test_the_rule_scores_the_vivid_sample_higher(tmp_path: Path) -> None:
    (media := tmp_path / "media").mkdir()
    grey = np.full((64, 64, 3), 118, np.uint8)
    vivid = grey.copy()
    vivid[16:48, 16:48] = (230, 30, 40)
    for name, pixels in {"0-0": grey, "0-1": vivid}.items():
        Image.fromarray(pixels).save(media / f"{name}.png")

    done = run(ROOT, "python", str(EXAMPLE / "rule.py"), "score", str(tmp_path))

    assert done.returncode == 0, done.stderr
    with (tmp_path / "rule.csv").open(newline="", encoding="utf-8") as file:
        scores = {row["sample"]: float(row["vividness"]) for row in csv.DictReader(file)}
    assert scores.keys() == {"0-0", "0-1"}
    assert scores["0-0"] == 0 < scores["0-1"]


@pytest.mark.slow
def test_samples_become_as_the_rule_prefers_them(tmp_path: Path) -> None:
    for name in ("examples", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name)

    done = run(tmp_path, "bash", "examples/preferences/tiny.sh")

    assert done.returncode == 0, done.stderr[-2000:]
    out = tmp_path / "runs" / "preferences"
    (row,) = json.loads((out / "report.json").read_text(encoding="utf-8"))["rows"]
    assert row["held_out"]["rewards/accuracies"] >= 0.9
    assert row["rise"] >= 1
    assert "<img" in (out / "report.html").read_text(encoding="utf-8")
    prompts = {
        name: {json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()}
        for name in ("pairs-1", "pairs-2-held-out")
        for file in [out / "1" / f"{name}.pairs.jsonl"]
    }
    assert prompts["pairs-1"].isdisjoint(prompts["pairs-2-held-out"])
