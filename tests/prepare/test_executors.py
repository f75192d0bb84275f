"""Workers: one thread each, and errors in one line."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from emu3_megatron.config.prepare import RunConfig
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.executors import run_tasks


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
        task.out.write_text(str(self._threads()))


def tasks(folder):
    return [WriteTask(folder / str(i)) for i in range(3)]


PROCESSES = RunConfig(executor="processes", workers=2)


def test_a_worker_has_one_thread(tmp_path):
    run_tasks(partial(WriteThreads, ""), tasks(tmp_path), PROCESSES, "threads/task")

    assert [task.out.read_text() for task in tasks(tmp_path)] == ["1"] * 3


def test_what_a_worker_refuses_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"^of no use$"):
        run_tasks(partial(WriteThreads, "of no use"), tasks(tmp_path), PROCESSES, "threads/task")
