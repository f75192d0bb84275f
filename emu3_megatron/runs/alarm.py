"""An alarm that ends a process in which no thread of Python can run any more."""

import ctypes
import faulthandler
import math
import signal
from contextlib import suppress
from typing import Any

_CLOCK_MONOTONIC = 1
_SIGEV_THREAD = 2  # at its time the system calls a function, in a thread of its own


class _Event(ctypes.Structure):
    """`struct sigevent` of Linux."""

    _fields_ = (
        ("value", ctypes.c_size_t),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("rest", ctypes.c_byte * 32),
    )


class _Times(ctypes.Structure):
    """`struct itimerspec`: interval, and time until the first."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("every_s", "every_ns", "s", "ns"))


class Alarm:
    """Ends the process by SIGALRM, its stacks on the screen, unless it is set again in time.

    It needs neither Python's lock nor a disk. A process that was suspended is not ended when it
    goes on: the time being over, the system sets `alarm`, and Python has some seconds more to set
    this anew. Where the system has no such timers nothing happens.

    Args:
        grace: those seconds; more than there are between two calls of `set`.
    """

    def __init__(self, grace: float):
        self._library = _library()
        if not self._library:
            return
        faulthandler.register(signal.SIGALRM, file=2, all_threads=True, chain=True)
        call = ctypes.cast(self._library.alarm, ctypes.c_void_p)
        event = _Event(math.ceil(grace) + 1, 0, _SIGEV_THREAD, call)
        self._timer = ctypes.c_void_p()
        timer = ctypes.byref(self._timer)
        if self._library.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event), timer):
            self._library = None  # the system has no timer left

    def set(self, seconds: float) -> None:
        """Go off after so many seconds, and the grace."""
        if self._library:
            whole = int(seconds)
            times = _Times(0, 0, whole, max(1, int((seconds - whole) * 1e9)))
            self._library.timer_settime(self._timer, 0, ctypes.byref(times), None)
            self._library.alarm(0)

    def cancel(self) -> None:
        """Never go off; once."""
        if self._library:
            self._library.timer_delete(self._timer)
            self._library.alarm(0)
            self._library = None


def _library() -> Any:
    """Where timers are: in the C library since glibc 2.34."""
    for name in (None, "librt.so.1"):
        with suppress(OSError):
            library = ctypes.CDLL(name)
            if hasattr(library, "timer_create"):
                return library
    return None
