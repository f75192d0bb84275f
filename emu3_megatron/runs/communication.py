"""Measures how long a rank waits in collectives."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.distributed import ProcessGroup, Work

# Where Python enters torch's process groups; names that only some versions of torch have are there.
_STARTS = (
    "_allgather_base",
    "_end_coalescing",
    "_reduce_scatter_base",
    "all_gather_single",
    "all_to_all_single",
    "allgather",
    "allgather_coalesced",
    "allreduce",
    "allreduce_coalesced",
    "alltoall",
    "alltoall_base",
    "barrier",
    "broadcast",
    "gather",
    "recv",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_single",
    "scatter",
    "send",
)


class Clock(Protocol):
    def mark(self) -> Any: ...

    def seconds(self, begin: Any, end: Any) -> float: ...


class HostClock:
    """Wall-clock time of the calling thread: gloo's collectives hold it up."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, begin: float, end: float) -> float:
        return end - begin


class StreamClock:
    """Time of the current CUDA stream: NCCL holds up the stream that waits, and not the host."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


class Communication:
    """Counts the time in collectives of every group, while it is entered. A context manager.

    It holds what a rank stands still for: sending, receiving, and waiting for ranks that come late.
    What runs beside computation counts only as far as it is waited for. Torch has a hook for this
    on NCCL alone, so its calls are wrapped, and bare again afterwards.

    Attributes:
        is_on: whether it counts now; a step of the 8B model has ten thousand collectives, whose
            marks are too dear for every step.
    """

    def __init__(self, clock: Clock):
        self.clock = clock
        self.is_on = True
        self._spans: list[tuple[Any, Any]] = []
        self._bare: list[tuple[type, str, Any]] = []

    def __enter__(self) -> "Communication":
        calls = [(ProcessGroup, name) for name in _STARTS if name in vars(ProcessGroup)]
        for owner, name in [*calls, (Work, "wait")]:
            # As the class holds it: what getattr gives would not bind again.
            self._bare.append((owner, name, vars(owner)[name]))
            setattr(owner, name, self._timed(getattr(owner, name)))
        return self

    def __exit__(self, *error: object) -> None:
        for owner, name, bare in self._bare:
            setattr(owner, name, bare)
        self._bare.clear()

    def take_seconds(self) -> float:
        """Seconds since the last call; NaN if it does not count."""
        if not self.is_on:
            return math.nan
        spans, self._spans = self._spans, []
        return sum(self.clock.seconds(begin, end) for begin, end in spans)

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*arguments: Any, **settings: Any) -> Any:
            if not self.is_on:
                return call(*arguments, **settings)
            begin = self.clock.mark()
            try:
                return call(*arguments, **settings)
            finally:
                self._spans.append((begin, self.clock.mark()))

        return timed
