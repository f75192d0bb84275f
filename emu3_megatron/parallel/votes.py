"""Votes of all ranks, and work that the first rank does for all."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from emu3_megatron.errors import InputError

T = TypeVar("T")


def any_rank(*flags: bool) -> list[bool]:
    """For each flag, whether it is raised on any rank. One small all-reduce."""
    votes = torch.tensor(flags, dtype=torch.int32, device=_device())
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return [bool(vote) for vote in votes.tolist()]


def greatest_of_ranks(*values: float) -> list[float]:
    """Of each value the greatest that any rank has. One small all-reduce."""
    greatest = torch.tensor(values, dtype=torch.float64, device=_device())
    dist.all_reduce(greatest, op=dist.ReduceOp.MAX)
    return greatest.tolist()


def of_all_ranks(value: float) -> list[float]:
    """The value of every rank, in their order. One small all-reduce."""
    values = torch.zeros(dist.get_world_size(), dtype=torch.float64, device=_device())
    values[dist.get_rank()] = value
    dist.all_reduce(values)
    return values.tolist()


def first_of_ranks(value: T | None) -> tuple[int, T] | None:
    """The lowest rank that has a value, and the value; None if no rank has one."""
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return next(((rank, v) for rank, v in enumerate(values) if v is not None), None)


def on_first_rank(action: Callable[[], T]) -> T:
    """What `action` returns on the first rank, on every rank; its errors too.

    Without this a first rank that fails alone leaves the others in their next collective.

    Raises:
        InputError, OSError: what `action` raised, on all ranks alike.
    """
    outcome: list[tuple[T | None, Exception | None]] = [(None, None)]
    if dist.get_rank() == 0:
        try:
            outcome = [(action(), None)]
        except (InputError, OSError) as error:
            outcome = [(None, error)]
    dist.broadcast_object_list(outcome)
    result, failure = outcome[0]
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
