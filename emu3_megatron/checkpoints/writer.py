"""Writes one rank's share of a checkpoint in a process of its own, while training goes on.

Megatron-core's own background writer waits for ever when a process under it dies, starts a manager
process that outlives a killed job, and imports the entry script again. This one is a single forked
process: it dies with its rank, hashes what it writes, and is noticed when it dies.
"""

import ctypes
import gc
import mmap
import multiprocessing
import os
import queue
import signal
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

from emu3_megatron import manifest, progress, upstream

upstream.write_without_manager()

_PR_SET_PDEATHSIG = 1
_FORKS = 3
_SECONDS_TO_BEGIN = 10.0
_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class Written:
    """What one rank wrote.

    Attributes:
        results: torch's records of what lies where, for the checkpoint's index.
        files: name, size and hash of each file.
        error: why it could not be written; the rest is empty then.
    """

    results: list[Any]
    files: dict[str, dict[str, Any]]
    error: str | None = None


class BackgroundWriter:
    """Writes a writer's buckets; the tensors are as they were when this was made.

    The forked process sees a copy of host memory, so only GPU tensors are copied beforehand: into
    pinned memory, which it shares with this one, so that it must not be used again before the end.
    """

    def __init__(self, writer: FileSystemWriterAsync):
        buckets = writer.preload_tensors(writer.write_buckets, non_blocking=True)
        self._held = [tensor for bucket in buckets for _, tensor in bucket[2][1]]
        transforms = [writer.transforms] if hasattr(writer, "transforms") else []
        self._paths = [Path(bucket[0]) for bucket in buckets]
        self._marks = memoryview(mmap.mmap(-1, 8)).cast(
            "Q"
        )  # of progress, which the process counts
        self._failed: str | None = None  # why there is no process
        # A rank that fails must not wait for a write that nobody will commit.
        self._kill_at_exit = Finalize(None, self._end, exitpriority=10)
        for _ in range(_FORKS):
            if self._begin(transforms, buckets):
                return
        self._failed = f"none of {_FORKS} processes to write it began"

    def _begin(self, transforms: list[Any], buckets: list[Any]) -> bool:
        """Fork; whether the process began, or none can be had.

        One may never begin: Python up to 3.11 can leave a forked process waiting for a lock that a
        thread of its parent, of gloo or autograd, held at that moment (CPython issue 112275).
        """
        context = multiprocessing.get_context("fork")
        self._answer, theirs = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_write,
            args=(transforms, buckets, theirs, self._marks, os.getpid()),
            name="checkpoint writer",
        )
        try:
            self._process.start()
        except OSError as error:  # no memory for one more process
            self._failed = f"no process to write it: {error.strerror}"
            return True
        finally:
            theirs.close()
        if not self._answer.poll(_SECONDS_TO_BEGIN):
            self._end()
            return False
        with suppress(EOFError):  # it died: `wait` says how
            self._answer.recv()
        return True

    def is_done(self) -> bool:
        """Whether it has finished, failed or died."""
        return self._failed is not None or self._answer.poll()

    def wait(self) -> Written:
        """Wait for it to finish, fail or die. Once."""
        written = Written([], {}, self._failed) if self._failed else self._receive()
        self._end()
        self._kill_at_exit.cancel()
        return written

    def _receive(self) -> Written:
        before = None
        while not self._answer.poll(_SECONDS_BETWEEN_LOOKS):
            now = self._marks[0], *map(_size, self._paths)
            if now != before:
                progress.mark()
            before = now
        try:
            return self._answer.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            return Written([], {}, f"the process that wrote it died (exit code {code})")

    def _end(self) -> None:
        """End the process, which has said what it had to say."""
        if self._process.pid:
            self._process.kill()
            self._process.join()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _write(
    transforms: list[Any], buckets: list[Any], answer: Any, marks: memoryview, parent: int
) -> None:
    answer.send("began")
    gc.disable()  # collecting a copy of the parent's CUDA tensors would touch the device
    torch.set_num_threads(1)  # a forked process has lost the threads of the parent's pool
    _die_with(parent)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the rank decides; this write is worth finishing
    try:
        results: list[Any] = []
        files = {}
        with progress.heard_by(partial(_count, marks)):
            for bucket in buckets:
                results += _write_bucket(transforms, bucket)
                files[bucket[1]] = manifest.describe(Path(bucket[0]))
        answer.send(Written(results, files))
    except Exception as error:
        answer.send(Written([], {}, _words(error)))


def _count(marks: memoryview) -> None:
    marks[0] += 1


def _write_bucket(transforms: list[Any], bucket: Any) -> list[Any]:
    """Write and sync one file by Megatron's own function, which talks through queues."""
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    count: queue.Queue[int] = queue.Queue()
    count.put(0)
    FileSystemWriterAsync.write_preloaded_data(transforms, 0, bucket, results, count, True)
    _, outcome = results.get()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _die_with(parent: int) -> None:
    """Linux: be killed when the parent is, so that nothing outlives a killed rank."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _words(error: Exception) -> str:
    """One line; torch hides the reason of a failed write in the cause of its own error."""
    cause: BaseException = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    return " ".join(str(cause if isinstance(cause, OSError) else error).split())
