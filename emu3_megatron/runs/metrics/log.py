"""Makes rows of metrics with rates, times and memory, and gives them to all writers."""

import math
import resource
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from emu3_megatron.parallel.votes import greatest_of_ranks, of_all_ranks
from emu3_megatron.runs.communication import Communication
from emu3_megatron.runs.metrics.writers import Writer

T = TypeVar("T")


@dataclass(frozen=True)
class Work:
    """What one step came to over all ranks, for rates.

    Attributes:
        samples: where a step is counted in them too.
    """

    tokens: int = 0
    flops: float = 0.0
    samples: int = 0


class Waited(Iterator[T]):
    """An iterator that knows how long its items were waited for."""

    def __init__(self, items: Iterable[T]):
        self._items = iter(items)
        self._seconds = 0.0

    def __next__(self) -> T:
        mark = time.perf_counter()
        item = next(self._items)
        self._seconds += time.perf_counter() - mark
        return item

    def close(self) -> None:
        """End the generator that the items come from, and the processes that read ahead for it.

        An error would keep both alive, and Python waits for such processes when it exits.
        """
        if isinstance(self._items, Generator):
            self._items.close()

    def take_seconds(self) -> float:
        """Seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class Log:
    """Rows of metrics, and the clocks behind them.

    Args:
        communication: time in collectives.
        peak_flops: of all ranks together in FLOP/s, where it is known: rows have an MFU then.

    Attributes:
        writers: of the first rank; others have none.
        waits: seconds of each rank in collectives, in the step of the last row.
    """

    def __init__(self, communication: Communication, peak_flops: float | None = None):
        self.communication = communication
        self.peak_flops = peak_flops
        self.writers: list[Writer] = []
        self.waits: list[float] = []
        self._waited: Waited[Any] = Waited([])
        self._restart(0)

    def waited(self, items: Iterable[T]) -> Waited[T]:
        """The batches of a run, whose waiting times count as `data_seconds`."""
        self._waited = Waited(items)
        return self._waited

    def start_clocks(self, step: int) -> None:
        """What follows counts as step `step + 1`; what was since the last row counts as nothing."""
        self._restart(step)
        self._waited.take_seconds()
        self.communication.take_seconds()

    def add(self, work: Work) -> None:
        """Count the work of a step."""
        self._tokens += work.tokens
        self._flops += work.flops
        self._samples += work.samples

    def write(self, row: Mapping[str, Any]) -> None:
        for writer in self.writers:
            writer.write(finite(row))

    def show(self, step: int, images: dict[str, Path]) -> None:
        for writer in self.writers:
            writer.show(step, images)

    def close(self) -> None:
        for writer in self.writers:
            writer.close()

    def measure(self, step: int) -> dict[str, float]:
        """Rates, and of all ranks the greatest times and memory; times are those of one step."""
        data = self._waited.take_seconds() / (step - self._step)
        self.waits = of_all_ranks(self.communication.take_seconds())
        data, memory = greatest_of_ranks(data, peak_memory() / 1e9)
        return {
            **self._rates(step),
            "data_seconds": data,
            "communication_seconds": max(self.waits),
            "communication_seconds_least": min(self.waits),
            "memory_gb": memory,
        }

    def _rates(self, step: int) -> dict[str, float]:
        seconds = time.perf_counter() - self._mark
        measured = {
            "step_seconds": seconds / (step - self._step),
            "tokens_per_second": self._tokens / seconds,
        }
        if self._samples:
            measured["samples_per_second"] = self._samples / seconds
        if self.peak_flops and self._flops:
            measured["mfu"] = self._flops / seconds / self.peak_flops
        self._restart(step)
        return measured

    def _restart(self, step: int) -> None:
        self._mark, self._step = time.perf_counter(), step
        self._tokens, self._flops, self._samples = 0, 0.0, 0


def peak_memory() -> int:
    """Bytes this rank has had in use at most: of its GPU, or of main memory without one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: leave such values out."""
    return {k: v for k, v in row.items() if not (isinstance(v, float) and not math.isfinite(v))}
