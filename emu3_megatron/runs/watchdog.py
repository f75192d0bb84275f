"""Threads beside every rank that write heartbeats, and end a run that hangs.

Heartbeats are files, `RUN/ranks/00003.json`: they outlive the rank, need no collective, and are
what `emu3 status` reads. A rank without progress for the limit writes the stacks of its threads,
finds out from all heartbeats which rank is late, says so and leaves; its launcher ends the rest. It
stays while another rank gets on, for which it waits. Time in which the process was suspended does
not count. What holds the threads up too, a file system that hangs or a call that keeps Python's
lock, is ended by an alarm that needs neither.
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
from typing import Any, NoReturn

from emu3_megatron import progress
from emu3_megatron.errors import HUNG, InputError
from emu3_megatron.parallel import Mesh
from emu3_megatron.runs.alarm import Alarm
from emu3_megatron.runs.heartbeats import FOLDER, diagnosis, gets_on, read_heartbeats

_BEATS_A_LIMIT = 6
# A thread that wakes so much too late was suspended with its process, or its machine was.
_SUSPENDED_SECONDS = 1.0
# What stands between a collective and the line that called it.
_BETWEEN = ("contextlib.py", "communication.py")


class Watchdog:
    """Watches the main thread of this rank. A context manager.

    Args:
        folder: of the run.
        limit: seconds that may pass without a mark of progress, `run.hang_seconds`.
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
        self._hearing = progress.heard_by(self.goes_on)
        self._ended = threading.Event()
        self._state = "running"
        self._beaten = time.monotonic()
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
        self._hearing.__enter__()
        self._alarm = Alarm(grace=3 * self.interval)
        self._alarm.set(self.limit)
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
        self._hearing.__exit__(None, None, None)
        self._state = "left"
        self._beat()
        self._alarm.cancel()
        if isinstance(error, InputError) and self.step == 0:
            self._path.unlink()  # a run that was refused leaves nothing

    @property
    def step(self) -> int:
        """The step that this rank is in."""
        return self._place_in_run[0]

    def at(self, step: int, phase: str) -> None:
        """Note progress: a phase of a step begins."""
        self._place_in_run = (step, phase)
        self.goes_on()

    def goes_on(self) -> None:
        """Note progress inside a phase that may take long."""
        self._since = time.monotonic()

    def _beat_on(self) -> None:
        while not self._ended.wait(self.interval):
            self._beat()
            with contextlib.suppress(OSError):
                self.on_beat()

    def _watch(self) -> None:
        while not self._slept_on(self.interval):
            self._alarm.set(self.limit)  # unless this thread comes by again
            if self._is_late():
                self._look_again()

    def _is_late(self) -> bool:
        return time.monotonic() - self._since > self.limit

    def _slept_on(self, seconds: float) -> bool:
        """Sleep, unless the run ends; whether it has. Progress is due anew after a suspension."""
        began = time.monotonic()
        has_ended = self._ended.wait(seconds)
        if time.monotonic() - began > 2 * seconds + _SUSPENDED_SECONDS:
            self.goes_on()
        return has_ended

    def _beat(self) -> None:
        step, phase = self._place_in_run
        beat = {
            **self._place,
            "state": self._state,
            "step": step,
            "phase": phase,
            "for_seconds": round(time.monotonic() - self._since, 1),
            **where_is(sys._current_frames().get(self._main)),
        }
        beside = self._path.with_suffix(".tmp")
        try:
            beside.write_text(json.dumps(beat), encoding="utf-8")
            os.replace(beside, self._path)
            self._beaten = time.monotonic()
        except OSError as error:
            print(f"{self._path}: {error.strerror}", file=sys.stderr)

    def _look_again(self) -> None:
        """End the run, unless this rank, or another, has got on when all have beaten again."""
        self._alarm.set(8 * self.interval)
        self._state = "hanging"
        if self._slept_on(2 * self.interval):
            return
        try:
            beats = read_heartbeats(self.folder.parent)
            if not self._is_late() or self._waits_for_one_of(beats):
                self._state = "running"
                return
            words = self._describe(beats)
        except Exception as error:  # a full disk is no reason to stay
            words = f"which rank is late is not known: {error}"
        self._leave(words)

    def _waits_for_one_of(self, beats: list[dict[str, Any]]) -> bool:
        """Whether another rank gets on; where heartbeats are not written any more, none does."""
        if time.monotonic() - self._beaten > 3 * self.interval + _SUSPENDED_SECONDS:
            return False
        others = (beat for beat in beats if beat["rank"] != self._place["rank"])
        return any(gets_on(beat, self.limit) for beat in others)

    def _describe(self, beats: list[dict[str, Any]]) -> str:
        stacks = self._path.with_suffix(".stacks.txt")
        with stacks.open("w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file=file, all_threads=True)
        return f"{diagnosis(beats)}; stacks: {stacks}"

    def _leave(self, words: str) -> NoReturn:
        print(
            f"emu3: rank {self._place['rank']}: no progress for {self.limit:.0f} seconds, "
            f"run.hang_seconds: {words}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(HUNG)


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
