"""examples/data: the bilingual set and a clip from files to packs with one command."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_bilingual_set_goes_from_files_to_packs_with_one_command(tmp_path):
    if not shutil.which("apt-get"):
        pytest.skip("the set comes from Debian packages")
    shutil.copytree(ROOT / "examples" / "data", tmp_path / "examples" / "data")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    run = ["bash", str(tmp_path / "examples" / "data" / "run.sh")]
    done = subprocess.run(
        run, env={**os.environ, "PATH": path}, capture_output=True, text=True, encoding="utf-8"
    )

    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 folders of packs (valid)" in done.stdout
    data = tmp_path / "runs" / "data"
    captions = [
        json.loads(line)
        for line in (data / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert Counter(bool(row["zh"]) for row in captions) == {True: 713, False: 72}
    manifest = json.loads((data / "prepared" / "manifest.json").read_text(encoding="utf-8"))
    kept = {kind: entry["kept"] for kind, entry in manifest["kinds"].items()}
    assert kept == {"images": 647, "clips": 1, "text": 254}
    assert len(re.findall(r"<img", (data / "data.html").read_text(encoding="utf-8"))) > 20
