"""Workers: one thread each, errors in one line; those that die or hang are replaced."""

import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from emu3_megatron.config.prepare import RunConfig
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.executors import run_tasks
from emu3_megatron.prepare.isolation import WorkerFailed
from emu3_megatron.prepare.items import Failed, attempt


@dataclass(frozen=True)
class WriteTask:
    out: Path
    size: int = 1


class WriteThreads:
    """Writes down how many threads OpenCV has, which is imported when the worker is made."""

    def __init__(self, message: str):
        import cv2

        self._threads, self._message = cv2.getNumThreads, message

    def __call__(self, task: WriteTask) -> None:
        if self._message:
            raise InputError(self._message)
        task.out.write_text(str(self._threads()), encoding="utf-8")


def tasks(folder):
    return [WriteTask(folder / str(i)) for i in range(3)]


PROCESSES = RunConfig(executor="processes", workers=2)


def test_a_worker_has_one_thread(tmp_path):
    run_tasks(partial(WriteThreads, ""), tasks(tmp_path), PROCESSES, "threads/task")

    assert [task.out.read_text(encoding="utf-8") for task in tasks(tmp_path)] == ["1"] * 3


def test_what_a_worker_refuses_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"^of no use$"):
        run_tasks(partial(WriteThreads, "of no use"), tasks(tmp_path), PROCESSES, "threads/task")


# Items


def fail_with_an_index():
    [][1]


def hang():
    time.sleep(60)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


TROUBLE = {"index.gif": fail_with_an_index, "crash.avif": die, "hang.mkv": hang}


class WriteReasons:
    """Writes why items fail; `TROUBLE` names what happens at which."""

    def __init__(self, names):
        self._names = names

    def __call__(self, task: WriteTask) -> None:
        found = {name: attempt(name, TROUBLE.get(name, str)) for name in self._names}
        bad = {name: one for name, one in found.items() if isinstance(one, Failed)}
        task.out.write_text(
            "\n".join(f"{name}: {one.reason}" for name, one in bad.items()), encoding="utf-8"
        )


def reasons(folder, executor, *names):
    config = RunConfig(executor=executor, workers=1, stall_seconds=0.5)
    run_tasks(partial(WriteReasons, names), [WriteTask(folder / "out")], config, "reasons/task")
    return (folder / "out").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("executor", ["local", "processes"])
def test_what_a_decoder_raises_is_its_items_reason(tmp_path, executor):
    found = reasons(tmp_path, executor, "good.png", "index.gif", "other.png")

    assert found == ["index.gif: fails with IndexError (list index out of range)"]


def test_an_item_that_kills_its_worker_or_hangs_is_set_aside(tmp_path):
    found = reasons(tmp_path, "processes", "good.png", "crash.avif", "hang.mkv", "index.gif")

    assert found == [
        "crash.avif: the process that read it died (SIGKILL)",
        "hang.mkv: no progress for 0.5 seconds",
        "index.gif: fails with IndexError (list index out of range)",
    ]


@pytest.mark.slow
def test_under_ray_too(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    found = reasons(tmp_path, "ray", "good.png", "crash.avif", "hang.mkv", "index.gif")

    assert [line.partition(": ")[0] for line in found] == ["crash.avif", "hang.mkv", "index.gif"]


class Dies:
    def __call__(self, task):
        die()


class Mistaken:
    def __call__(self, task):
        task.no_such_attribute  # noqa: B018


def test_a_worker_that_dies_at_no_item_stops_the_run(tmp_path):
    with pytest.raises(InputError, match=r"died \(SIGKILL\), at no item; run the same command"):
        run_tasks(Dies, tasks(tmp_path), PROCESSES, "tasks/task")


def test_a_mistake_in_the_program_keeps_its_traceback(tmp_path):
    with pytest.raises(WorkerFailed, match=r"line \d+, in __call__"):
        run_tasks(Mistaken, tasks(tmp_path), PROCESSES, "tasks/task")
