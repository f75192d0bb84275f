"""examples/lora/run.sh, cut to a few steps, on what the demo leaves in the place of the shapes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.documented import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(demo: Path, tmp_path: Path) -> Path:
    """A copy of the example whose decoder, tokenizer and packs are the demo's."""
    for name in ("examples", "runs/shapes/tokenizer", "runs/quality/best/packs", "bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "runs/quality/held-out").mkdir()
    for link, target in {
        "examples/lora": ROOT / "examples/lora",
        "runs/shapes/decoder": demo / "decoder-run",
        "runs/shapes/tokenizer/tokenizer": demo / "tokenizer-run/tokenizer",
        "runs/quality/best/packs/images.pack": demo / "data/packs/stage1.pack",
    }.items():
        (tmp_path / link).symlink_to(target)
    programs = {"emu3": "-m emu3_megatron", "torchrun": "-m torch.distributed.run"}
    for name, module in programs.items():
        path = tmp_path / "bin" / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n', encoding="utf-8")
        path.chmod(0o755)
    return tmp_path


def test_adapters_are_trained_merged_and_drawn_with(folder: Path):
    few = ["run.steps=4", "run.log_every=1", "data.context=704", "validation=null"]
    few.append("optimizer.schedule.warmup_steps=1")
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", str(folder / "examples/lora/run.sh"), *few],
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    out = folder / "runs/lora"

    assert done.returncode == 0, done.stderr[-3000:]
    rows = [
        json.loads(line)
        for line in (out / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert (out / "tuned/model.safetensors").is_file()
    assert (out / "tuned/adapter/adapter_model.safetensors").is_file()
    assert (out / "decoder.png").is_file()
    assert (out / "run.png").is_file()
