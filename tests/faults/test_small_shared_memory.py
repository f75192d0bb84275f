"""A /dev/shm of a few kilobytes, as small as Docker's is for long sequences."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from support.faults import in_a_namespace, run_job
from support.tiny import tiny_recipe

MOUNT = "mount -t tmpfs -o size=64k tmpfs /dev/shm"


def test_a_small_shared_memory_is_named_in_one_line(packs: Path, tmp_path: Path) -> None:
    if not shutil.which("unshare") or in_a_namespace(MOUNT).returncode:
        pytest.skip("this machine lets nobody mount a tmpfs in a namespace of its own")
    report = tmp_path / "report.json"
    python = f"{sys.executable} {__file__} {packs} {tmp_path / 'run'} {report}"
    done = in_a_namespace(f"{MOUNT} && exec {python}")
    assert done.returncode == 0, done.stderr

    code, said = json.loads(report.read_text(encoding="utf-8"))
    assert code == 2, said
    _, _, line = said.partition("emu3: ")
    assert "/dev/shm is too small" in line
    assert "--shm-size" in line
    assert "data.workers=0" in line
    assert "Traceback" not in said
    assert len(line.splitlines()) == 1


if __name__ == "__main__":
    given, folder, out = map(Path, sys.argv[1:])
    sections = {"batch": {"micro_size": 8}, "data": {"workers": 1}}
    (ended,) = run_job(tiny_recipe(given, folder, **sections))
    out.write_text(json.dumps([ended.code, ended.said]), encoding="utf-8")
