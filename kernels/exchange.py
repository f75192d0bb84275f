"""How the ranks that share a vocabulary talk, so that one code path serves one rank, many, a test.

Every reduction is an all-gather followed by the same sum in rank order on all ranks, or a single
collective of torch's: two runs are bit-equal.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


class Exchange(Protocol):
    """Talk among `size` ranks, of which this is number `rank`. No member knows autograd.

    The hidden states of a call are either the same on all ranks, or divided among them in rank
    order (sequence parallelism): `tokens_divided`.
    """

    rank: int
    size: int
    tokens_divided: bool

    def all_gather(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Start to collect the tensors of all ranks; the call returned waits: [size, ...]."""
        ...

    def gather_tokens(self, hidden_nh: torch.Tensor) -> torch.Tensor:
        """The hidden states of all tokens, from this rank's."""
        ...

    def sum_tokens(self, gradient_nh: torch.Tensor) -> torch.Tensor:
        """The gradient of this rank's hidden states, from every rank's part for all tokens."""
        ...


@dataclass(frozen=True)
class NoExchange:
    """One rank holds everything."""

    rank: int = 0
    size: int = 1
    tokens_divided: bool = False

    def all_gather(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: tensor[None]

    def gather_tokens(self, hidden_nh: torch.Tensor) -> torch.Tensor:
        return hidden_nh

    def sum_tokens(self, gradient_nh: torch.Tensor) -> torch.Tensor:
        return gradient_nh


class GroupExchange:
    """A torch.distributed process group.

    Args:
        tokens_divided: each rank comes with the hidden states of its part of the tokens, all parts
            equally long, and takes the gradient of that part.
    """

    def __init__(self, group: dist.ProcessGroup, *, tokens_divided: bool = False):
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self.tokens_divided = tokens_divided

    def all_gather(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        gathered = tensor.new_empty(self.size * tensor.shape[0], *tensor.shape[1:])
        work = dist.all_gather_into_tensor(gathered, tensor, group=self.group, async_op=True)

        def wait() -> torch.Tensor:
            work.wait()
            return gathered.view(self.size, *tensor.shape)

        return wait

    def gather_tokens(self, hidden_nh: torch.Tensor) -> torch.Tensor:
        if not self.tokens_divided:
            return hidden_nh
        return self.all_gather(hidden_nh.contiguous())().flatten(0, 1)

    def sum_tokens(self, gradient_nh: torch.Tensor) -> torch.Tensor:
        gradient_nh = gradient_nh.contiguous()  # a collective on a copy would be lost
        if not self.tokens_divided:
            dist.all_reduce(gradient_nh, group=self.group)
            return gradient_nh
        mine = gradient_nh.new_empty(gradient_nh.shape[0] // self.size, *gradient_nh.shape[1:])
        dist.reduce_scatter_tensor(mine, gradient_nh, group=self.group)
        return mine


class SimulatedExchange:
    """One of several ranks that are threads of this process; `simulate` makes them."""

    def __init__(self, rank: int, board: "_Board", tokens_divided: bool):
        self.rank = rank
        self.size = board.barrier.parties
        self.board = board
        self.tokens_divided = tokens_divided

    def all_gather(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        gathered = self.board.collect(self.rank, tensor)
        return lambda: gathered

    def gather_tokens(self, hidden_nh: torch.Tensor) -> torch.Tensor:
        return self.all_gather(hidden_nh)().flatten(0, 1) if self.tokens_divided else hidden_nh

    def sum_tokens(self, gradient_nh: torch.Tensor) -> torch.Tensor:
        total_nh = self.all_gather(gradient_nh)().sum(0)
        return total_nh.chunk(self.size)[self.rank] if self.tokens_divided else total_nh


class _Board:
    """Where simulated ranks pin up their tensors for the others."""

    def __init__(self, size: int):
        self.barrier = threading.Barrier(size, timeout=60)
        self.pinned: list[Any] = [None] * size

    def collect(self, rank: int, tensor: torch.Tensor) -> torch.Tensor:
        self.pinned[rank] = tensor
        self.barrier.wait()
        gathered = torch.stack(self.pinned)
        self.barrier.wait()  # nobody pins the next before all have read
        return gathered


def simulate(
    size: int, function: Callable[[Exchange], T], *, tokens_divided: bool = False
) -> list[T]:
    """Call `function` once for each of `size` ranks, at the same time; what each returned.

    A group of any size without its processes or devices, for tests.
    """
    board = _Board(size)

    def call(rank: int) -> T:
        try:
            return function(SimulatedExchange(rank, board, tokens_divided))
        except BaseException:
            board.barrier.abort()  # the others must not wait for this one
            raise

    with ThreadPoolExecutor(size) as threads:
        calls = [threads.submit(call, rank) for rank in range(size)]
    errors = [error for one in calls if (error := one.exception())]
    # Where one fails the others find the barrier broken: its own error says more.
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [one.result() for one in calls]
