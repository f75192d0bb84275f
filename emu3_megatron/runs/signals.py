"""Notes SIGTERM and SIGUSR1, with which a run is told to leave."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from emu3_megatron.errors import RunEnded
from emu3_megatron.parallel.votes import any_rank

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Remembers a signal until all ranks ask about it together, once a step.

    Used as a context manager: handlers are put in place, and put back at the end. A second signal
    is no different from the first; SIGKILL is what ends a run at once. A run that ends for a reason
    of its own ignores them from then on: its exit status is not to be lost, when a launcher sends
    its processes away because the first of them has left.
    """

    def __init__(self) -> None:
        self.was_told = False  # this rank alone
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if isinstance(error, RunEnded) else handler)

    def was_made(self) -> bool:
        """Whether any rank was told to leave. A vote: every rank must ask."""
        (told,) = any_rank(self.was_told)
        return told

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.was_told = True
