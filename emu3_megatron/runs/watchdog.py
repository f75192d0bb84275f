"""Threads beside every rank that write heartbeats, and end a run that hangs.

Heartbeats are files, `RUN/ranks/00003.json`: they outlive the rank, need no collective, and are
what `emu3 status` reads. A rank without progress for the limit writes the stacks of its threads,
finds out from all heartbeats which rank is late, says so and leaves; its launcher ends the rest.
What holds the threads up too, a file system that hangs or a call that keeps Python's lock, is ended
by a timer that needs neither.
"""

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

from emu3_megatron.errors import HUNG, InputError
from emu3_megatron.parallel import Mesh
from emu3_megatron.runs.heartbeats import FOLDER, diagnosis, read_heartbeats

_BEATS_A_LIMIT = 6
# What stands between a collective and the line that called it.
_BETWEEN = ("contextlib.py", "communication.py")


class Watchdog:
    """Watches the main thread of this rank. A context manager.

    Args:
        folder: of the run.
        limit: seconds that one phase of a step may take.
        on_beat: called at every heartbeat, from the thread.
    """

    def __init__(
        self, folder: Path, mesh: Mesh, limit: float, on_beat: Callable[[], None] = lambda: None
    ):
        self.folder = folder / FOLDER
        self._path = self.folder / f"{mesh.rank:05d}.json"
        self.limit = limit
        self.on_beat = on_beat
        self.interval = min(limit / _BEATS_A_LIMIT, 10.0)
        self._main = threading.get_ident()
        # Apart: a file system that hangs must not hold up the one that looks at the clock.
        self._threads = [
            threading.Thread(target=self._beat_on, name="heartbeat", daemon=True),
            threading.Thread(target=self._watch, name="watchdog", daemon=True),
        ]
        self._ended = threading.Event()
        self._state = "running"
        self._place = {
            "rank": mesh.rank,
            "ranks": mesh.size,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "tensor": mesh.tensor_rank,
            "context": mesh.context_rank,
            "data": mesh.data_rank,
            "interval": self.interval,
        }
        self.at(0, "starting")

    def __enter__(self) -> "Watchdog":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._beat()
        _leave_after(self.limit)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._state = "left"
        self._beat()
        faulthandler.cancel_dump_traceback_later()
        if isinstance(error, InputError) and self.step == 0:
            self._path.unlink()  # a run that was refused leaves nothing

    @property
    def step(self) -> int:
        """The step that this rank is in."""
        return self._progress[0]

    def at(self, step: int, phase: str) -> None:
        """Note progress: a phase of a step begins."""
        self._progress = (step, phase, time.monotonic())

    def goes_on(self) -> None:
        """Note progress inside a phase that may take long."""
        self.at(*self._progress[:2])

    def _beat_on(self) -> None:
        while not self._ended.wait(self.interval):
            self._beat()
            with contextlib.suppress(OSError):
                self.on_beat()

    def _watch(self) -> None:
        while not self._ended.wait(self.interval):
            _leave_after(self.limit)  # unless this thread comes by again
            if time.monotonic() - self._progress[2] > self.limit:
                self._end_the_hang()

    def _beat(self) -> None:
        step, phase, since = self._progress
        beat = {
            **self._place,
            "state": self._state,
            "step": step,
            "phase": phase,
            "for_seconds": round(time.monotonic() - since, 1),
            **where_is(sys._current_frames().get(self._main)),
        }
        beside = self._path.with_suffix(".tmp")
        try:
            beside.write_text(json.dumps(beat), encoding="utf-8")
            os.replace(beside, self._path)
        except OSError as error:
            print(f"{self._path}: {error.strerror}", file=sys.stderr)

    def _end_the_hang(self) -> NoReturn:
        _leave_after(8 * self.interval)
        try:
            words = self._find_the_late()
        except Exception as error:  # a full disk is no reason to stay
            words = f"which rank is late is not known: {error}"
        message = f"emu3: rank {self._place['rank']}: no progress for {self.limit:.0f} seconds"
        print(f"{message}: {words}", file=sys.stderr, flush=True)
        os._exit(HUNG)

    def _find_the_late(self) -> str:
        stacks = self._path.with_suffix(".stacks.txt")
        with stacks.open("w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file=file, all_threads=True)
        self._state = "hanging"
        time.sleep(2 * self.interval)  # until the heartbeats of all have been written
        return f"{diagnosis(read_heartbeats(self.folder.parent))}; stacks: {stacks}"


def _leave_after(seconds: float) -> None:
    """End the process with its stacks on the screen and status 1, unless called again by then."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)


def where_is(frame: FrameType | None) -> dict[str, str | None]:
    """The collective that a thread is in, if any, and the line outside torch that it came from."""
    collective, line = None, None
    while frame is not None and line is None:
        code = frame.f_code
        if "/torch/distributed/" in code.co_filename:
            public = not code.co_name.startswith(("_", "wrapper", "inner"))
            if public or collective is None:  # a manager of several collectives is private
                collective = code.co_name
        elif "/torch/" not in code.co_filename and Path(code.co_filename).name not in _BETWEEN:
            line = f"{'/'.join(Path(code.co_filename).parts[-2:])}:{frame.f_lineno} {code.co_name}"
        frame = frame.f_back
    return {"collective": collective, "line": line}
