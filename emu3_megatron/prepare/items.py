"""Does the work of one item at a time: whatever fails is set aside with its reason.

Every stage hands the work on an item to `attempt`, so that no stage needs a list of what decoders
may raise. What an item is at is written to memory that the process which watches the worker
shares: when the worker dies or hangs, it knows which item to set aside.
"""

import ctypes
import errno
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from emu3_megatron.errors import InputError
from emu3_megatron.media.files import UnreadableError, reason_of

T = TypeVar("T")

NAME_BYTES = 4608  # a path of the longest kind, and where in the file
# Faults of the machine: no other item would fare better.
_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_END: Any = object()


class RunFault(InputError):
    """Something is wrong that has nothing to do with the item at work: the run stops."""


@dataclass(frozen=True)
class Failed:
    """Stands for what an item would have given.

    Attributes:
        expected: the work itself says that the item cannot be used, by an InputError.
    """

    reason: str
    expected: bool = False


class Board:
    """What a worker is at, in memory that two processes share."""

    def __init__(self, context: Any):
        self._beats = context.RawValue(ctypes.c_ulonglong, 0)
        self._timed = context.RawValue(ctypes.c_bool, False)
        self._name = context.RawArray(ctypes.c_char, NAME_BYTES)

    def enter(self, name: str, timed: bool) -> None:
        self._name.value = _cut(name)
        self._timed.value = timed
        self.beat()

    def time(self, on: bool) -> None:
        """Has the item at work to show progress from now on?"""
        self._timed.value = on
        self.beat()

    def leave(self) -> None:
        self._name.value = b""
        self._timed.value = False

    def beat(self) -> None:
        """A sign of progress."""
        self._beats.value += 1

    @property
    def beats(self) -> int:
        return int(self._beats.value)

    @property
    def timed(self) -> bool:
        """Is an item at work that has to show progress?"""
        return bool(self._timed.value)

    @property
    def name(self) -> str:
        """Of the item at work; empty when there is none."""
        return _text(self._name.value)


_board: Board | None = None  # of this process, when another one watches it
_aside: Mapping[str, str] = {}  # items of the task that killed a worker before, and why


def watched_by(board: Board) -> None:
    """From now on this process tells on the board what it is at."""
    global _board
    _board = board


def start_task(aside: Mapping[str, str]) -> None:
    """Begin a task, of which some items are not tried any more."""
    global _aside
    _aside = aside


def attempt(name: str, work: Callable[[], T], timed: bool = True) -> T | Failed:
    """What the work on an item gives, or why it failed.

    Args:
        name: of the item, which no other item of the task has.
        timed: the work is a decoder's, which can hang. Computing can take any time.

    Raises:
        RunFault, OSError: a fault of the machine, such as a full disk.
    """
    if _aside and (reason := _aside.get(_text(_cut(name)))):
        return Failed(reason)
    if _board is not None:
        _board.enter(name, timed)
    try:
        return work()
    except RunFault:
        raise
    except Exception as error:  # libraries raise whatever the damage leads them to
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            raise
        return Failed(_reason(error), isinstance(error, InputError))
    finally:
        if _board is not None:
            _board.leave()


def attempt_each(name: str, found: Iterable[T]) -> Iterator[T | Failed]:
    """What an item holds, one after another; a failure on the way is the last."""
    take = partial(next, iter(found), _END)
    while (one := attempt(name, take)) is not _END:
        yield one
        if isinstance(one, Failed):
            return


def with_progress(steps: Iterable[T]) -> Iterator[T]:
    """The same; each step is a sign of progress, so that only one that hangs is too long."""
    for step in steps:
        if _board is not None:
            _board.beat()
        yield step


def timed(steps: Iterable[T]) -> Iterator[T]:
    """The same, inside work that is not timed: each step is a decoder's, which can hang."""
    take = partial(next, iter(steps), _END)
    while (step := _timed(take)) is not _END:
        yield step


def _timed(work: Callable[[], T]) -> T:
    if _board is None:
        return work()
    _board.time(True)
    try:
        return work()
    finally:
        _board.time(False)


def _reason(error: Exception) -> str:
    if isinstance(error, UnreadableError):
        return error.reason
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError):
        return reason_of(error)
    if isinstance(error, UnicodeError):
        return "not UTF-8 text"
    return f"fails with {type(error).__name__} ({reason_of(error)})"


def _cut(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")[: NAME_BYTES - 1]


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogatepass" if len(name) < NAME_BYTES - 1 else "replace")
