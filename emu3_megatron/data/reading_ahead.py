"""Worker processes that read items of a data set ahead, and are replaced if they never begin."""

import multiprocessing
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")

_FORKS = 3
_SECONDS_TO_BEGIN = 10.0


def read_ahead(
    items: Dataset[T], keys: Iterable[Any], workers: int, pin_memory: bool = False
) -> Iterator[T]:
    """The items of some keys, in their order.

    Args:
        keys: given anew each time they are asked for.
        workers: processes; 0 reads in this one.
    """
    heard, said = os.pipe()
    try:
        loader = DataLoader(
            items,
            batch_size=None,
            sampler=keys,
            num_workers=workers,
            # A fork server between us and them would heed the signals that they do not.
            multiprocessing_context="fork" if workers else None,
            collate_fn=_unchanged,
            worker_init_fn=partial(_begin, said),
            pin_memory=pin_memory,
        )
        read = _from_workers(loader, workers, heard)
    finally:
        os.close(heard)
        os.close(said)
    yield from read


def _from_workers(loader: Iterable[T], workers: int, heard: int) -> Iterator[T]:
    """What a loader gives, from workers that have begun.

    One may never begin: Python up to 3.11 can leave a forked process waiting for a lock that a
    thread of its parent, of gloo or autograd, held at that moment (CPython issue 112275).
    """
    for _ in range(_FORKS):
        others = {process.pid for process in multiprocessing.active_children()}
        read = iter(loader)
        if _have_begun(workers, heard):
            return read
        _kill([p for p in multiprocessing.active_children() if p.pid not in others])
        del read  # torch ends what is left
    raise RuntimeError(f"{_FORKS} times a data worker did not begin; data.workers=0 needs none")


def _have_begun(workers: int, heard: int) -> bool:
    end = time.monotonic() + _SECONDS_TO_BEGIN
    left = workers
    while left and select.select([heard], [], [], max(0.0, end - time.monotonic()))[0]:
        left -= len(os.read(heard, left))
    return not left


def _kill(workers: list[BaseProcess]) -> None:
    """End workers, without torch's report that they were lost."""
    report = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in workers:
        worker.kill()
        worker.join()
    signal.signal(signal.SIGCHLD, report)


def _begin(said: int, worker: int) -> None:
    """A cluster's signal reaches every process of a job: the ranks decide, and still need data."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    os.write(said, b".")


def _unchanged(value: T) -> T:
    return value
