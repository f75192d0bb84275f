"""Two jobs on one run folder."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.faults import Job, run_job

from emu3_megatron import manifest
from emu3_megatron.checkpoints import folders, saving
from emu3_megatron.errors import InputError
from emu3_megatron.runs import lock
from emu3_megatron.runs.lock import NAME, STALE_SECONDS, RunLock, read_holder
from emu3_megatron.runs.processes import this_process
from emu3_megatron.runs.status import _life


def test_a_second_job_is_refused_on_all_its_ranks_while_the_first_trains_on(recipe):
    recipe = recipe(run={"steps": 100_000, "save_every": 100_000, "log_every": 10})
    job = Job(recipe)
    job.until(lambda: (recipe.run.dir / NAME).exists())
    ends = run_job(recipe, ranks=2)

    assert [end.code for end in ends] == [2, 2]
    assert "is training here; end it first, or choose another run.dir" in ends[0].said
    assert f"process {job.processes[0].pid} on {socket.gethostname()}" in ends[0].said
    assert read_holder(recipe.run.dir)["alive"]
    job.processes[0].kill()
    job.wait()
    assert not read_holder(recipe.run.dir)["alive"]


def test_the_lock_of_a_killed_job_is_taken_over(recipe):
    recipe = recipe(run={"steps": 100_000, "save_every": 100_000})
    job = Job(recipe)
    job.until(lambda: (recipe.run.dir / NAME).exists())
    os.kill(job.processes[0].pid, signal.SIGKILL)
    job.wait()
    assert (recipe.run.dir / NAME).exists()

    (end,) = run_job(
        recipe.model_copy(update={"run": recipe.run.model_copy(update={"stop_after": 1})})
    )

    assert end.code == 0, end.said


def elsewhere(folder, age):
    """A lock of another host, whose last heartbeat is so many seconds old."""
    path = folder / NAME
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}), encoding="utf-8")
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))


def test_a_lock_of_another_host_holds_while_its_heart_beats(tmp_path):
    elsewhere(tmp_path, age=STALE_SECONDS / 2)
    with pytest.raises(InputError, match="process 1 on elsewhere is training here"):
        RunLock(tmp_path)

    elsewhere(tmp_path, age=STALE_SECONDS * 2)
    RunLock(tmp_path).release()


@pytest.mark.parametrize("place", ["namespace", "boot"])
def test_a_lock_of_another_container_or_boot_holds_while_its_heart_beats(place, tmp_path):
    """Its process has a number that means nothing here: that of no process, or of another."""
    holder = {**this_process(), place: "another", "started": "1"}
    path = tmp_path / NAME
    path.write_text(json.dumps(holder), encoding="utf-8")

    with pytest.raises(InputError, match=r"is training here; .* at 60 it counts as dead"):
        RunLock(tmp_path)
    assert _life(tmp_path, []).startswith(f"running, process {os.getpid()} on ")

    before = path.stat().st_mtime - 2 * STALE_SECONDS
    os.utime(path, (before, before))
    assert _life(tmp_path, []).startswith("dead: ")
    RunLock(tmp_path).release()


UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def may_unshare():
    return (
        shutil.which("unshare") and subprocess.run([*UNSHARE, "true"], check=False).returncode == 0
    )


@pytest.mark.skipif(not may_unshare(), reason="may not start a process namespace")
def test_a_job_in_a_container_of_this_host_has_its_folder(tmp_path):
    code = f"""
from pathlib import Path
from emu3_megatron.runs.lock import RunLock
RunLock(Path({str(tmp_path)!r}))
print("locked", flush=True)
input()
"""
    other = subprocess.Popen(
        [*UNSHARE, sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(InputError, match="is training here"):
            RunLock(tmp_path)
    finally:
        other.communicate(b"\n")


def test_a_lock_that_another_has_just_taken_over_is_put_back(tmp_path):
    """Two jobs find one stale lock, and the slower would remove that of the quicker."""
    elsewhere(tmp_path, age=2 * STALE_SECONDS)
    slower = object.__new__(RunLock)
    slower.path, slower.job = tmp_path / NAME, "slower"
    stale = read_holder(tmp_path)
    quicker = RunLock(tmp_path)

    slower._remove_stale(stale)

    assert quicker.is_ours()


def test_a_lock_that_was_never_written_to_its_end_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_SECONDS_TO_WRITE", 0.1)
    (tmp_path / NAME).write_text('{"host": ', encoding="utf-8")

    RunLock(tmp_path).release()


def test_a_job_whose_folder_was_taken_over_commits_nothing(tmp_path):
    mine = RunLock(tmp_path)
    beside, target = tmp_path / ".step-2.tmp", tmp_path / "step-2"
    for folder, text in ((beside, "of the job that was late"), (target, "of the other")):
        folder.mkdir()
        (folder / "weights").write_text(text, encoding="utf-8")
    elsewhere(tmp_path, age=0)  # another host found the lock stale

    with pytest.raises(InputError, match="another job has taken this folder over"):
        manifest.commit(beside, target, {}, {}, mine.is_ours)

    assert (target / "weights").read_text(encoding="utf-8") == "of the other"
    mine.release()
    assert read_holder(tmp_path)["host"] == "elsewhere"


def test_a_job_whose_folder_was_taken_over_neither_removes_nor_keeps_alive_what_is_there(tmp_path):
    mine = RunLock(tmp_path)
    unfinished = tmp_path / ".step-00000002.tmp"
    unfinished.mkdir()
    for name in ("step-00000001", "step-00000002"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    kept = tmp_path / "checkpoints" / "step-00000001"
    (kept.parent / "latest").write_text("step-00000002\n", encoding="utf-8")
    elsewhere(tmp_path, age=STALE_SECONDS / 2)

    with pytest.raises(InputError, match="another job has taken this folder over"):
        saving._prepare(tmp_path / "step-00000002", {}, mine.is_ours)
    with pytest.raises(InputError, match="another job has taken this folder over"):
        folders._prune(kept.parent, 1, None, mine.is_ours)
    mine.beat()

    assert unfinished.is_dir()
    assert kept.is_dir()
    assert read_holder(tmp_path)["age"] > STALE_SECONDS / 3


def test_two_saves_of_one_step_are_written_beside_each_other(tmp_path):
    """A job that was taken for dead goes on writing when it wakes."""
    target = tmp_path / "step-00000002"
    mine = saving._prepare(target, {}, lambda: True)
    (mine / "weights").write_text("half of them", encoding="utf-8")

    assert saving._prepare(target, {}, lambda: True) != mine


def test_a_file_system_that_fails_for_a_moment_takes_no_lock_away(tmp_path, monkeypatch):
    mine, read = RunLock(tmp_path), Path.read_text
    failures = iter([OSError(errno.ESTALE, "Stale file handle")])

    def fail_once(path, **settings):
        if path.name == NAME and (error := next(failures, None)):
            raise error
        return read(path, **settings)

    monkeypatch.setattr(Path, "read_text", fail_once)
    monkeypatch.setattr(lock, "_SECONDS_BETWEEN_READS", 0)

    assert mine.is_ours()
    assert next(failures, None) is None, "it failed once"


def lose_the_lock():
    """As if another host had found it stale."""
    lock.RunLock.is_ours = lambda self: False


def test_a_job_whose_folder_was_taken_over_ends_when_it_would_save(recipe):
    ends = run_job(recipe(), ranks=2, fault=lose_the_lock)

    assert [end.code for end in ends] == [2, 2]
    for end in ends:
        assert end.said.splitlines()[-1].count("another job has taken this folder over") == 1
    assert list((recipe().run.dir / "checkpoints").glob("*step*")) == []


def test_a_process_that_came_by_the_number_of_a_dead_one_holds_no_lock(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        me = {**this_process(), "pid": other.pid, "started": "1"}
        (tmp_path / NAME).write_text(json.dumps(me), encoding="utf-8")
        assert read_holder(tmp_path)["alive"] is False
        RunLock(tmp_path).release()
    finally:
        other.communicate(b"\n")
