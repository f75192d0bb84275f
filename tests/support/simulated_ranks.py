"""A group of any size without its processes or devices: each rank is a thread of this process."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

import torch
from emu3_kernels.exchange import Exchange, NoExchange

T = TypeVar("T")

TIMEOUT = 120  # seconds that a rank waits for another one


class _Shared:
    """What the ranks of a group have in common: a place for tensors, a queue for each pair."""

    def __init__(self, size: int):
        self.size = size
        self.barrier = threading.Barrier(size, timeout=TIMEOUT)
        self.tensors: list[Any] = [None] * size
        self.queues: dict[tuple[int, int], Any] = {
            (source, target): SimpleQueue() for source in range(size) for target in range(size)
        }

    def collect(self, rank: int, tensor: torch.Tensor) -> torch.Tensor:
        self.tensors[rank] = tensor
        self.barrier.wait()
        gathered = torch.stack(self.tensors)
        self.barrier.wait()  # no rank brings the next tensor before all have read this one
        return gathered

    def receive(self, source: int, target: int) -> torch.Tensor:
        tensor = self.queues[source, target].get(timeout=TIMEOUT)
        if tensor is None:
            raise threading.BrokenBarrierError(f"rank {source} failed")
        return tensor

    def fail(self, rank: int) -> None:
        """A rank failed: the others must not wait for it."""
        self.barrier.abort()
        for target in range(self.size):
            self.queues[rank, target].put(None)


class SimulatedExchange:
    """The `Exchange` of one simulated rank; `simulate` makes them."""

    def __init__(self, rank: int, shared: _Shared, tokens_divided: bool):
        self.rank = rank
        self.size = shared.size
        self.tokens_divided = tokens_divided
        self._shared = shared

    def all_gather(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        gathered = self._shared.collect(self.rank, tensor)
        return lambda: gathered

    def gather_tokens(self, hidden_nh: torch.Tensor) -> Callable[[], torch.Tensor]:
        all_nh = self.all_gather(hidden_nh)().flatten(0, 1) if self.tokens_divided else hidden_nh
        return lambda: all_nh

    def sum_tokens(self, gradient_nh: torch.Tensor) -> Callable[[], torch.Tensor]:
        total_nh = self.all_gather(gradient_nh)().sum(0)
        own_nh = total_nh.chunk(self.size)[self.rank] if self.tokens_divided else total_nh
        return lambda: own_nh

    def send_receive(
        self, outgoing: torch.Tensor, target: int, incoming: torch.Tensor, source: int
    ) -> Callable[[], None]:
        if outgoing.numel():
            self._shared.queues[self.rank, target].put(outgoing.clone())

        def wait() -> None:
            if incoming.numel():
                incoming.copy_(self._shared.receive(source, self.rank))

        return wait


def simulate(
    size: int, function: Callable[[Exchange], T], *, tokens_divided: bool = False
) -> list[T]:
    """Call `function` once for each of `size` ranks, all at the same time.

    On a GPU call no `backward` of autograd in it: autograd has one thread a device, in which
    ranks that wait for each other would wait for ever.

    Returns:
        what each rank returned, in order.
    """
    shared = _Shared(size)

    def call(rank: int) -> T:
        try:
            return function(SimulatedExchange(rank, shared, tokens_divided))
        except BaseException:
            shared.fail(rank)
            raise

    with ThreadPoolExecutor(size) as threads:
        calls = [threads.submit(call, rank) for rank in range(size)]
    errors = [error for one in calls if (error := one.exception())]
    # The others only report that a rank failed: its own error says more.
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [one.result() for one in calls]


class RecordingExchange(NoExchange):
    """One of two ranks, the other holds only padding; notes when an exchange starts and ends."""

    def __init__(self, events: list[str]):
        object.__setattr__(self, "events", events)
        object.__setattr__(self, "size", 2)

    def all_gather(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        number = sum(event.startswith("start") for event in self.events)
        self.events.append(f"start {number}")

        def wait() -> torch.Tensor:
            self.events.append(f"end {number}")
            nothing = torch.zeros_like(tensor)
            nothing[0] = -torch.inf
            return torch.stack([tensor, nothing])

        return wait

    def sum_tokens(self, gradient_nh: torch.Tensor) -> Callable[[], torch.Tensor]:
        self.events.append("start sum")

        def wait() -> torch.Tensor:
            self.events.append("end sum")
            return gradient_nh

        return wait
