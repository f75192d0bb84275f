"""A worker in a process of its own: it is replaced when it dies or hangs at an item.

Decoders can crash the process that they run in, and no exception tells of it. The items at which
a worker died are set aside, and the task is done again without them.
"""

import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from typing import Any

from emu3_megatron.prepare.items import Board, start_task, watched_by

_CONTEXT = get_context("forkserver")
_LOOK = 1.0  # seconds between two looks at the worker's progress
_TRIES = 2  # deaths at one item, or outside all items: one may be the fault of something else
_STARTING = threading.Lock()  # threads share the server that forks

Handle = Callable[[Any], Any]
"""Does a task and returns a result."""


class WorkerDied(Exception):
    """A worker died again and again, and at no item."""


class WorkerFailed(Exception):
    """A mistake in the program: the traceback of the worker."""


@dataclass(frozen=True)
class _Mistake:
    text: str


@dataclass(frozen=True)
class _Death:
    """How a worker ended, at which item; the name is empty when it was at none."""

    name: str
    reason: str
    hung: bool


def preload(modules: list[str]) -> None:
    """Import these once, for all workers, before the first of them starts."""
    _CONTEXT.set_forkserver_preload(modules)


class WorkerProcess:
    """Does tasks in another process, which lives from task to task.

    Args:
        make: returns what handles tasks; picklable.
        stall_seconds: without progress at one item, after which the worker is ended.
    """

    def __init__(self, make: Callable[[], Handle], stall_seconds: float):
        self._make = pickle.dumps(make)
        self._stall_seconds = stall_seconds
        self._process: Any = None
        self._connection: Connection | None = None
        self._board = Board(_CONTEXT)
        self._stopped = False

    def run(self, task: Any) -> Any:
        """The result of a task, without the items at which workers died.

        Raises:
            WorkerDied: it dies at no item.
            WorkerFailed: what handles tasks raised.
        """
        aside: dict[str, str] = {}
        deaths: dict[str, int] = {}
        while True:
            result = self._once(task, aside)
            if isinstance(result, _Mistake):
                raise WorkerFailed(result.text)
            if not isinstance(result, _Death):
                return result
            deaths[result.name] = deaths.get(result.name, 0) + 1
            if self._stopped:
                raise WorkerDied(result.reason)
            if deaths[result.name] < _TRIES and not result.hung:
                continue
            if not result.name:
                raise WorkerDied(result.reason)
            aside[result.name] = result.reason

    def stop(self) -> None:
        """End the process."""
        self._stopped = True
        if self._process is not None:
            self._process.kill()

    def _once(self, task: Any, aside: dict[str, str]) -> Any:
        if self._connection is None:
            self._start()
        assert self._connection is not None
        try:
            self._connection.send((task, aside))
            hung = not self._wait(self._connection)
            if not hung:
                return self._connection.recv()
        except (EOFError, OSError):
            hung = False
        return self._bury(hung)

    def _wait(self, connection: Connection) -> bool:
        """Is there an answer? Not when the item at work shows no progress."""
        beats, since = self._board.beats, time.monotonic()
        while not connection.poll(min(_LOOK, self._stall_seconds / 4)):
            if (now := self._board.beats) != beats or not self._board.timed:
                beats, since = now, time.monotonic()
            elif time.monotonic() - since > self._stall_seconds:
                return False
        return True

    def _start(self) -> None:
        self._board.leave()
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(
            target=_serve, args=(theirs, self._make, self._board), daemon=True
        )
        with _STARTING:
            process.start()
        self._process = process
        if self._stopped:
            process.kill()
        theirs.close()
        self._connection = ours

    def _bury(self, hung: bool) -> _Death:
        name = self._board.name
        if hung:
            self._process.kill()
        self._process.join()
        assert self._connection is not None
        self._connection.close()
        self._connection = None
        if hung:
            return _Death(name, f"no progress for {self._stall_seconds:g} seconds", hung)
        how = _how_it_ended(self._process.exitcode)
        return _Death(name, f"the process that read it died ({how})", hung)


def _how_it_ended(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"status {code}"


def _serve(connection: Connection, make: bytes, board: Board) -> None:
    """The life of a worker's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that watches it ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    watched_by(board)
    handle: Handle | None = None
    while True:
        try:
            task, aside = connection.recv()
        except EOFError:
            return
        start_task(aside)
        try:
            handle = handle or pickle.loads(make)()
            result = handle(task)
        except Exception:
            result = _Mistake(traceback.format_exc())
        connection.send(result)


def _end_with_parent() -> None:
    """A worker that hangs reads nothing, and would outlive a parent that was killed."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
