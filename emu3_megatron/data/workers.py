"""Processes that read batches ahead, step by step."""

import resource
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
from torch.utils.data import Dataset, get_worker_info

from emu3_megatron.data.batches import Batch
from emu3_megatron.data.reading_ahead import read_ahead
from emu3_megatron.data.transfer import Parcel, too_small
from emu3_megatron.errors import InputError

T = TypeVar("T")


def steps_of(
    make: Callable[[range], Batch],
    steps: Iterable[range],
    micro_size: int,
    *,
    data_rank: int,
    data_size: int,
    workers: int = 0,
) -> Iterator[list[Batch]]:
    """The micro-batches of one data parallel rank, step by step.

    Whatever the number of ranks, rank r gets the r-th of equal, contiguous parts of each step.

    Args:
        make: the batch of some sequences, by their numbers; called in the workers.
        steps: the sequences of each step, from the first again each time that they are asked for.
        micro_size: sequences a batch.
        data_rank, data_size: this rank, and how many there are.
        workers: processes that read ahead; 0 reads in this one.

    Raises:
        InputError: while it goes on, the data cannot be read.
    """
    if workers:
        _allow_as_many_files_as_possible()
    shares = _Shares(steps, micro_size, data_rank, data_size)
    read = read_ahead(_Requests(make), _Orders(shares), workers, torch.cuda.is_available())
    return _by_step(_received(read), shares)


@dataclass(frozen=True)
class _Shares(Iterable[range]):
    """The sequences of each step that are this rank's."""

    steps: Iterable[range]
    micro_size: int
    data_rank: int
    data_size: int

    def __iter__(self) -> Iterator[range]:
        for step in self.steps:
            share, rest = divmod(len(step), self.data_size)
            assert rest == share % self.micro_size == 0, "checked: BatchConfig.check"
            yield step[self.data_rank * share : (self.data_rank + 1) * share]


@dataclass(frozen=True)
class _Orders(Iterable[range]):
    """The sequences of each micro-batch, from the first again each time that they are asked for."""

    shares: _Shares

    def __iter__(self) -> Iterator[range]:
        size = self.shares.micro_size
        for share in self.shares:
            for begin in range(share.start, share.stop, size):
                yield range(begin, begin + size)


def _by_step(
    received: Iterator[Batch | Parcel | InputError], shares: _Shares
) -> Iterator[list[Batch]]:
    for share in shares:
        yield [_opened(batch) for batch in islice(received, len(share) // shares.micro_size)]


def _opened(batch: Batch | Parcel | InputError) -> Batch:
    if isinstance(batch, InputError):
        raise batch
    return batch.value() if isinstance(batch, Parcel) else batch


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
