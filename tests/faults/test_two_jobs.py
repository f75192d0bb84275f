"""Two jobs on one run folder."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.faults import Job, run_job

from emu3_megatron import manifest
from emu3_megatron.checkpoints import saving
from emu3_megatron.errors import InputError
from emu3_megatron.runs import lock
from emu3_megatron.runs.lock import NAME, STALE_SECONDS, RunLock, read_holder


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
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))


def test_a_lock_of_another_host_holds_while_its_heart_beats(tmp_path):
    elsewhere(tmp_path, age=STALE_SECONDS / 2)
    with pytest.raises(InputError, match="process 1 on elsewhere is training here"):
        RunLock(tmp_path)

    elsewhere(tmp_path, age=STALE_SECONDS * 2)
    RunLock(tmp_path).release()


def test_a_job_whose_folder_was_taken_over_commits_nothing(tmp_path):
    mine = RunLock(tmp_path)
    beside, target = tmp_path / ".step-2.tmp", tmp_path / "step-2"
    for folder, text in ((beside, "of the job that was late"), (target, "of the other")):
        folder.mkdir()
        (folder / "weights").write_text(text)
    elsewhere(tmp_path, age=0)  # another host found the lock stale

    with pytest.raises(InputError, match="another job has taken this folder over"):
        manifest.commit(beside, target, {}, {}, mine.is_ours)

    assert (target / "weights").read_text() == "of the other"
    mine.release()
    assert read_holder(tmp_path)["host"] == "elsewhere"


def test_a_job_whose_folder_was_taken_over_neither_removes_nor_keeps_alive_what_is_there(tmp_path):
    mine = RunLock(tmp_path)
    unfinished = tmp_path / ".step-00000002.tmp"
    unfinished.mkdir()
    elsewhere(tmp_path, age=STALE_SECONDS / 2)

    with pytest.raises(InputError, match="another job has taken this folder over"):
        saving._prepare(tmp_path / "step-00000002", {}, mine.is_ours)
    saving.PendingSave(2, tmp_path / "step-00000002", None, None, {})._remove(mine.is_ours)
    mine.beat()

    assert unfinished.is_dir()
    assert read_holder(tmp_path)["age"] > STALE_SECONDS / 3


def test_a_file_system_that_fails_for_a_moment_takes_no_lock_away(tmp_path, monkeypatch):
    mine, read = RunLock(tmp_path), Path.read_text
    failures = iter([OSError(errno.ESTALE, "Stale file handle")])

    def fail_once(path, *arguments):
        if path.name == NAME and (error := next(failures, None)):
            raise error
        return read(path, *arguments)

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
        me = {"host": socket.gethostname(), "pid": other.pid, "started": "1"}
        (tmp_path / NAME).write_text(json.dumps(me))
        assert read_holder(tmp_path)["alive"] is False
        RunLock(tmp_path).release()
    finally:
        other.communicate(b"\n")
