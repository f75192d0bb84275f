"""Processes that read batches ahead, step by step."""

import resource
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.utils.data import Dataset, get_worker_info

from emu3_megatron.config.training import BatchConfig
from emu3_megatron.data.batches import Batch
from emu3_megatron.data.reading_ahead import read_ahead
from emu3_megatron.data.transfer import Parcel, too_small
from emu3_megatron.errors import InputError

T = TypeVar("T")


def steps_of(
    make: Callable[[range], Batch],
    batch: BatchConfig,
    *,
    data_rank: int,
    data_size: int,
    first: int,
    last: int,
    workers: int = 0,
) -> Iterator[list[Batch]]:
    """The micro-batches of one data parallel rank, step by step.

    Step n, counted from 0, takes sequences n * batch.size up to (n + 1) * batch.size, whatever the
    number of ranks; rank r gets the r-th of equal, contiguous parts.

    Args:
        make: the batch of some sequences, by their numbers; called in the workers.
        data_rank, data_size: this rank, and how many there are.
        first, last: steps from `first` up to, not including, `last`.
        workers: processes that read ahead; 0 reads in this one.

    Raises:
        InputError: the batch does not divide; or, while it goes on, the data cannot be read.
    """
    if batch.size % (data_size * batch.micro_size):
        raise InputError(
            f"batch.size={batch.size} must be a multiple of batch.micro_size={batch.micro_size} "
            f"times {data_size} data-parallel ranks"
        )
    share = batch.size // data_size
    begins = range(first * batch.size, last * batch.size, batch.size)
    requests = _Orders(begins, data_rank * share, share, batch.micro_size)
    return _read_ahead(make, requests, share // batch.micro_size, workers)


@dataclass(frozen=True)
class _Orders(Iterable[range]):
    """The sequences of each micro-batch; from the first again, each time that they are asked for.

    Attributes:
        steps: the first sequence of each step.
        skipped: sequences of a step before those of this rank.
        share: sequences of a step that are this rank's.
    """

    steps: range
    skipped: int
    share: int
    micro_size: int

    def __iter__(self) -> Iterator[range]:
        for step in self.steps:
            first = step + self.skipped
            for begin in range(first, first + self.share, self.micro_size):
                yield range(begin, begin + self.micro_size)


def _read_ahead(
    make: Callable[[range], Batch], requests: Iterable[range], per_step: int, workers: int
) -> Iterator[list[Batch]]:
    if workers:
        _allow_as_many_files_as_possible()
    read = read_ahead(_Requests(make), requests, workers, torch.cuda.is_available())
    step: list[Batch] = []
    for batch in _received(read):
        if isinstance(batch, InputError):
            raise batch
        step.append(batch.value() if isinstance(batch, Parcel) else batch)
        if len(step) == per_step:
            yield step
            step = []


def _received(read: Iterable[T]) -> Iterator[T]:
    """What is read. A worker that shared memory was too small for may die of it."""
    try:
        yield from read
    except RuntimeError as error:
        if "shared memory" not in str(error):
            raise
        raise InputError(too_small()) from error


class _Requests(Dataset["Batch | Parcel | InputError"]):
    """Batches by the sequences they ask for.

    Errors travel as values: torch would wrap one raised in a worker into a long traceback.
    """

    def __init__(self, make: Callable[[range], Batch]):
        self.make = make

    def __getitem__(self, request: range) -> Batch | Parcel | InputError:
        try:
            batch = self.make(request)
            return Parcel.of(batch) if get_worker_info() else batch
        except InputError as error:
            return error


def _allow_as_many_files_as_possible() -> None:
    """Each batch that a worker sends holds a file open here."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
