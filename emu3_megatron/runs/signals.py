"""Notes what tells a run to leave: SIGTERM, SIGUSR1, Ctrl-C, the end of Slurm's time."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from emu3_megatron.errors import INTERRUPTED, RunEnded
from emu3_megatron.parallel.votes import any_rank

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# One Ctrl-C may arrive twice: from the terminal, and from a launcher that passes it on.
_ONE_CTRL_C = 1.0
_LONGEST_SHARE = 0.25  # of Slurm's time that is left for the last save


class StopRequest:
    """Remembers that the run is to leave, until all ranks ask about it together, once a step.

    Used as a context manager: handlers are put in place, and put back at the end. A second SIGTERM
    is no different from the first; a second Ctrl-C ends the run at once, even if its main thread is
    in a call that does not return. A run that ends for a reason of its own ignores signals from
    then on: its exit status is not to be lost, when a launcher sends its processes away because the
    first of them has left.

    Args:
        leave_at: when it is to leave by itself, as `time.time` counts; None: never.
        say: takes what a person at the keyboard is told.
        at_once: called before a second Ctrl-C ends the process.
    """

    def __init__(
        self,
        leave_at: float | None = None,
        say: Callable[[str], None] = lambda words: None,
        at_once: Callable[[], None] = lambda: None,
    ) -> None:
        self.leave_at, self.say, self.at_once = leave_at, say, at_once
        self.was_interrupted = False  # this rank alone
        self._was_sent = False
        self._before: dict[int, Any] = {}
        self._woken: int | None = None

    @property
    def was_told(self) -> bool:
        """Whether this rank was told to leave."""
        is_over = self.leave_at is not None and time.time() > self.leave_at
        return self._was_sent or is_over

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
            self._listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if isinstance(error, RunEnded) else handler)
        if self._woken is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._woken)

    def was_made(self) -> bool:
        """Whether any rank was told to leave. A vote: every rank must ask."""
        (told,) = any_rank(self.was_told)
        return told

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._was_sent = True
        self.was_interrupted |= number == signal.SIGINT

    def _listen(self) -> None:
        """Hear of signals in a thread too: the main one may be in a call that does not return."""
        heard, self._woken = os.pipe()
        os.set_blocking(self._woken, False)
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        # A forked process that is sent a signal would be heard here.
        os.register_at_fork(after_in_child=_hear_nothing)
        threading.Thread(target=self._count, args=(heard,), name="signals", daemon=True).start()

    def _count(self, heard: int) -> None:
        first: float | None = None
        while number := os.read(heard, 1):
            if number[0] != signal.SIGINT:
                continue
            if first is None:
                first = time.monotonic()
                self.say("Ctrl-C: leaving as soon as this step is saved; again: at once")
            elif time.monotonic() - first > _ONE_CTRL_C:
                self.at_once()
                os._exit(INTERRUPTED)
        os.close(heard)


def _hear_nothing() -> None:
    signal.set_wakeup_fd(-1)


def leaving_time(minutes: float | None) -> float | None:
    """When a job of Slurm is to leave, so many minutes before its time is over; None: never.

    A short job leaves a quarter of its time for the last save, if that is less.
    """
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    if minutes is None or not end.isdigit():
        return None
    begin = os.environ.get("SLURM_JOB_START_TIME", "")
    whole = int(end) - (int(begin) if begin.isdigit() else time.time())
    return int(end) - min(60 * minutes, _LONGEST_SHARE * whole)


def say_on_screen(words: str) -> None:
    print(f"emu3: {words}", file=sys.stderr, flush=True)
