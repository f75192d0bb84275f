"""A disk that really is full: a small tmpfs, which only the processes of the test see."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from support.faults import events, in_a_namespace, latest, losses, run_job, steps_of
from support.tiny import tiny_recipe

LEFT = 3_000_000  # bytes left beside the ballast: for two checkpoints, not for three


def test_a_full_disk_keeps_the_last_checkpoint_and_with_room_again_the_run_goes_on(
    packs: Path, untroubled: Path, tmp_path: Path
) -> None:
    disk, report = tmp_path / "run", tmp_path / "report.json"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=8m,mode=700 tmpfs {disk}"
    if not shutil.which("unshare") or in_a_namespace(mount).returncode:
        pytest.skip("this machine lets nobody mount a tmpfs in a namespace of its own")
    done = in_a_namespace(f"{mount} && exec {sys.executable} {__file__} {packs} {disk} {report}")
    assert done.returncode == 0, done.stderr

    full, roomy = json.loads(report.read_text(encoding="utf-8"))
    assert full["code"] != 0
    assert "step-00000006: not saved: " in full["said"]
    assert "No space left on device" in full["said"]
    assert full["failed"] == [6, 7, 8]
    assert (full["latest"], full["steps"], full["partial"]) == (4, [2, 4], [])
    assert roomy["code"] == 0, roomy["said"]
    assert (roomy["latest"], roomy["steps"]) == (8, [2, 4, 6, 8])
    assert roomy["losses"] == [[*pair] for pair in losses(untroubled).items()]


def train_on_a_full_disk(packs: Path, disk: Path) -> list[dict[str, Any]]:
    """A run that the disk has no space for, and the same run when it has."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - LEFT))
    run = {"steps": 8, "save_every": 2, "keep": 9, "save_in_background": False}
    recipe = tiny_recipe(packs, disk, run=run)
    full = look(recipe)
    ballast.unlink()
    return [full, look(recipe)]


def look(recipe: Any) -> dict[str, Any]:
    (end,) = run_job(recipe)
    folder = recipe.run.dir
    return {
        "code": end.code,
        "said": end.said,
        "latest": latest(folder),
        "steps": steps_of(folder),
        "failed": [event["step"] for event in events(folder, "save failed")],
        "partial": [path.name for path in (folder / "checkpoints").glob(".*.tmp")],
        "losses": [*losses(folder).items()],
    }


if __name__ == "__main__":
    packs, disk, report = map(Path, sys.argv[1:])
    report.write_text(json.dumps(train_on_a_full_disk(packs, disk)), encoding="utf-8")
