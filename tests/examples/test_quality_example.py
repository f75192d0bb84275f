"""examples/quality: what quality fine-tuning gains beyond its control, with one command."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_tuning_on_the_best_pictures_lowers_their_nll_more_than_tuning_on_others(tmp_path):
    for name in ("examples", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    run = ["bash", str(tmp_path / "examples" / "quality" / "tiny.sh")]
    done = subprocess.run(
        run, env={**os.environ, "PATH": path}, capture_output=True, text=True, encoding="utf-8"
    )

    assert done.returncode == 0, done.stderr[-2000:]
    (points,) = re.findall(r"the fall is (-?[\d.]+) points beyond the control's", done.stdout)
    assert float(points) >= 5
    assert "<img" in (tmp_path / "runs" / "quality" / "report.html").read_text(encoding="utf-8")
