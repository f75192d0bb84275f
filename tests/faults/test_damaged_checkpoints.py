"""A checkpoint that is not what was written is refused by name, or passed over when asked to."""

import os
import shutil

import pytest
from support.faults import latest, losses, run_job, steps_of

from emu3_megatron import manifest
from emu3_megatron.checkpoints import folders


def flip_a_byte(checkpoint, other):
    data = bytearray((checkpoint / "__0_0.distcp").read_bytes())
    data[len(data) // 2] ^= 1
    (checkpoint / "__0_0.distcp").write_bytes(data)
    return "__0_0.distcp: its bytes are not those that were written (SHA-256 differs)"


def cut_a_shard(checkpoint, other):
    path = checkpoint / "__0_0.distcp"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    return f"__0_0.distcp: {size // 2:,} bytes, its manifest says {size:,}"


def remove_a_shard(checkpoint, other):
    (checkpoint / "__0_0.distcp").unlink()
    return "__0_0.distcp: missing"


def remove_the_index(checkpoint, other):
    (checkpoint / ".metadata").unlink()
    return ".metadata: missing"


def take_a_shard_of_another_step(checkpoint, other):
    shutil.copy(other / "__0_0.distcp", checkpoint)
    return "__0_0.distcp: "


def take_the_manifest_of_another_step(checkpoint, other):
    shutil.copy(other / "manifest.json", checkpoint)
    return "its bytes are not those that were written"


def change_the_manifest(checkpoint, other):
    path = checkpoint / "manifest.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"seed": 0', '"seed": 1'), encoding="utf-8"
    )
    return "manifest.json: damaged, it is not what was written"


def remove_the_manifest(checkpoint, other):
    (checkpoint / "manifest.json").unlink()
    return "not a complete checkpoint, manifest.json is missing"


DAMAGES = [
    flip_a_byte,
    cut_a_shard,
    remove_a_shard,
    remove_the_index,
    take_a_shard_of_another_step,
    take_the_manifest_of_another_step,
    change_the_manifest,
    remove_the_manifest,
]


@pytest.fixture
def stopped(untroubled, recipe):
    """The recipe of a run that stopped at step 6, with its checkpoints of steps 2, 4 and 6."""
    recipe = recipe()
    shutil.copytree(untroubled, recipe.run.dir)
    checkpoints = recipe.run.dir / "checkpoints"
    shutil.rmtree(checkpoints / "step-00000008")
    (checkpoints / "latest").write_text("step-00000006\n", encoding="utf-8")
    return recipe


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_in_one_line_that_names_file_and_step(damage, stopped):
    checkpoints = stopped.run.dir / "checkpoints"
    words = damage(checkpoints / "step-00000006", checkpoints / "step-00000004")
    (end,) = run_job(stopped)

    assert end.code == 2
    (line,) = end.said.splitlines()
    assert words in line
    assert "step-00000006" in line or "step 6" in line
    assert latest(stopped.run.dir) == 6


def test_resume_auto_goes_on_from_the_newest_sound_checkpoint(stopped, untroubled, recipe):
    checkpoints = stopped.run.dir / "checkpoints"
    flip_a_byte(checkpoints / "step-00000006", None)
    (end,) = run_job(recipe(run={"resume": "auto"}))

    assert end.code == 0, end.said
    assert "step 6: " in end.said
    assert "set aside as damaged-step-00000006" in end.said
    assert (checkpoints / "damaged-step-00000006").is_dir()
    assert steps_of(stopped.run.dir) == [2, 4, 6, 8]
    assert losses(stopped.run.dir) == losses(untroubled)


def test_retention_never_removes_the_last_durable_checkpoint(stopped, recipe):
    checkpoints = stopped.run.dir / "checkpoints"
    flip_a_byte(checkpoints / "step-00000006", None)
    (end,) = run_job(recipe(run={"resume": "auto", "keep": 1, "stop_after": 5, "save_every": 9}))

    assert end.code == 0, end.said
    assert steps_of(stopped.run.dir) == [5]
    assert latest(stopped.run.dir) == 5


def test_a_checkpoint_that_is_being_removed_is_not_half_there_under_its_name(stopped, monkeypatch):
    checkpoints = stopped.run.dir / "checkpoints"
    monkeypatch.setattr(folders, "remove_folder", lambda folder: None)  # killed before
    folders._prune(checkpoints, 1, None, lambda: True)

    assert steps_of(stopped.run.dir) == [6]
    assert all((gone / "manifest.json").is_file() for gone in checkpoints.glob(".step-*.tmp"))


def rank_1_sees_an_older_tracker():
    """As a file system with a cache may show it for a while."""
    from emu3_megatron.training import stage

    if os.environ["RANK"] == "1":
        for module in (folders, stage):
            module.find_checkpoint = lambda folder: folder / "step-00000004"


def test_all_ranks_resume_from_the_checkpoint_that_the_first_one_sees(stopped, untroubled):
    ends = run_job(stopped, ranks=2, fault=rank_1_sees_an_older_tracker)

    assert [end.code for end in ends] == [0, 0], ends[0].said
    assert losses(stopped.run.dir) == pytest.approx(losses(untroubled), rel=1e-5)


def test_a_checkpoint_of_a_later_version_is_not_taken_for_a_damaged_one(stopped):
    checkpoint = stopped.run.dir / "checkpoints" / "step-00000006"
    about = {**manifest.read(checkpoint), "format": "emu3-megatron/checkpoint/99"}
    manifest._write(checkpoint / "manifest.json", about)
    stopped.run.resume = "auto"
    (end,) = run_job(stopped)

    assert end.code == 2
    (line,) = end.said.splitlines()
    assert "step-00000006: not a checkpoint of this program" in line
    assert steps_of(stopped.run.dir) == [2, 4, 6]
