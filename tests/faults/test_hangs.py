"""A rank stops, and nobody in the job would ever say so."""

import ctypes
import os
import shutil
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from support.faults import Job
from support.processes import _context

from emu3_megatron.parallel import Mesh
from emu3_megatron.runs.heartbeats import diagnosis, read_heartbeats
from emu3_megatron.runs.watchdog import Watchdog, where_is


def test_a_stopped_rank_is_named_and_ends_the_job(recipe):
    recipe = recipe(run={"steps": 100_000, "save_every": 100_000, "hang_seconds": 3.0})
    job = Job(recipe, ranks=2)
    ranks = recipe.run.dir / "ranks"
    job.until(lambda: any(b["step"] > 3 for b in read_heartbeats(recipe.run.dir)))
    os.kill(job.processes[1].pid, signal.SIGSTOP)
    job.processes[0].join(60)
    first, _ = job.wait(0)

    assert first.code == 77, first.said
    line = first.said.splitlines()[-1]
    assert (
        "no progress for 3 seconds, run.hang_seconds: rank 1 (tensor 0, context 0, data 1; process "
        in line
    )
    assert "is late: step " in line
    assert "silent for " in line
    stacks = (ranks / "00000.stacks.txt").read_text(encoding="utf-8")
    assert "runs/loop.py" in stacks


def sleep_with_pythons_lock(watchdog):
    ctypes.PyDLL(None).sleep(60)


def sleep_on_a_file_system_that_hangs(watchdog):
    watchdog._beat = lambda: time.sleep(60)
    time.sleep(60)


def sleep_on_a_folder_that_is_gone(watchdog):
    shutil.rmtree(watchdog.folder)
    time.sleep(60)


def hang(how, folder):
    with (folder / "said").open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 2)
        with Watchdog(folder, Mesh(*(0, 1) * 4, torch.device("cpu")), limit=1.2) as watchdog:
            how(watchdog)


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        (sleep_with_pythons_lock, -signal.SIGALRM, "in sleep_with_pythons_lock"),
        (
            sleep_on_a_file_system_that_hangs,
            77,
            "no progress for 1 seconds, run.hang_seconds: rank 0 ",
        ),
        (
            sleep_on_a_folder_that_is_gone,
            77,
            "no progress for 1 seconds, run.hang_seconds: which rank is late is",
        ),
    ],
)
def test_nothing_that_holds_up_the_watchdog_too_keeps_a_hang_alive(how, code, words, tmp_path):
    process = _context.Process(target=hang, args=(how, tmp_path))
    process.start()
    process.join(20)
    ended = process.exitcode
    process.kill()

    assert ended == code, (tmp_path / "said").read_text(encoding="utf-8")
    assert words in (tmp_path / "said").read_text(encoding="utf-8")


def beat(rank, step, collective=None, age=0.0, ranks=2):
    return {
        "rank": rank,
        "ranks": ranks,
        "step": step,
        "collective": collective,
        "age": age,
        "interval": 1.0,
        "phase": "training",
        "line": "training/step.py:60 __call__",
        **{"tensor": 0, "context": 0, "data": rank, "pid": 7, "host": "node"},
    }


def test_a_rank_behind_in_steps_is_late():
    assert diagnosis([beat(0, 7, "all_reduce"), beat(1, 6)]).startswith("rank 1 ")


def test_in_one_step_the_rank_outside_of_the_collective_is_late():
    waiting = [beat(rank, 7, "all_reduce", ranks=3) for rank in (0, 2)]

    late = diagnosis([*waiting, beat(1, 7, ranks=3)])

    assert late.startswith("rank 1 ")
    assert "rank 2" not in late


def test_a_silent_rank_is_late_before_all_others():
    assert diagnosis([beat(0, 6), beat(1, 7, age=30.0)]).startswith("rank 1 ")


def test_a_rank_that_never_beat_is_named():
    assert diagnosis([beat(0, 7, ranks=3), beat(2, 7, ranks=3)]) == "1 of 3 ranks never started: 1"


def test_a_place_is_the_line_that_called_and_the_collective_it_waits_in():
    frame = frames_of(
        ("/lib/emu3_megatron/runs/communication.py", "timed"),
        ("/lib/torch/distributed/distributed_c10d.py", "_coalescing_manager"),
        ("/lib/python3.12/contextlib.py", "__exit__"),
        ("/lib/megatron/core/distributed/param_and_grad_buffer.py", "start_grad_sync"),
    )

    assert where_is(frame) == {
        "collective": "_coalescing_manager",
        "line": "distributed/param_and_grad_buffer.py:1 start_grad_sync",
    }


def frames_of(*places):
    """Frames as `sys._current_frames` gives them, the innermost first."""
    frame = None
    for filename, name in reversed(places):
        code = SimpleNamespace(co_filename=filename, co_name=name)
        frame = SimpleNamespace(f_code=code, f_lineno=1, f_back=frame)
    return frame
