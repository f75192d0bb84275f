"""How tensors move between the ranks of a ring: not at all, over a process group, or simulated."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

_PATIENCE = 120  # seconds until a simulated rank gives up on a neighbour that failed


class Hops(Protocol):
    """Point-to-point messages among `size` ranks, of which this is number `rank`."""

    rank: int
    size: int

    def swap(
        self, outgoing: torch.Tensor, target: int, incoming: torch.Tensor, source: int
    ) -> Callable[[], None]:
        """Begin to send one tensor and to fill another; tensors without elements stay at home.

        Two ranks must post the messages between them in the same order.

        Returns:
            a function that waits until `incoming` is filled and `outgoing` may be reused.
        """
        ...


class NoHops:
    """One rank holds everything."""

    rank = 0
    size = 1

    def swap(
        self, outgoing: torch.Tensor, target: int, incoming: torch.Tensor, source: int
    ) -> Callable[[], None]:
        raise AssertionError("one rank has nobody to talk to")


class GroupHops:
    """Batched point-to-point over a process group. NCCL runs it on a stream of its own.

    Every rank of the group must make one: the first message of a group concerns them all.
    """

    def __init__(self, group: dist.ProcessGroup):
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        # NCCL builds its communicator at the first call, which all ranks must join.
        dist.barrier(group)

    def swap(
        self, outgoing: torch.Tensor, target: int, incoming: torch.Tensor, source: int
    ) -> Callable[[], None]:
        operations = [
            dist.P2POp(operation, tensor, group=self.group, group_peer=peer)
            for operation, tensor, peer in (
                (dist.isend, outgoing, target),
                (dist.irecv, incoming, source),
            )
            if tensor.numel()
        ]
        works = dist.batch_isend_irecv(operations) if operations else []

        def wait() -> None:
            for work in works:
                work.wait()
            operations.clear()  # they kept the tensors alive until here

        return wait


class SimulatedHops:
    """Ranks that are threads of one process; `simulate` makes them."""

    def __init__(self, rank: int, size: int, mail: dict[tuple[int, int], SimpleQueue]):
        self.rank = rank
        self.size = size
        self._mail = mail

    def swap(
        self, outgoing: torch.Tensor, target: int, incoming: torch.Tensor, source: int
    ) -> Callable[[], None]:
        if outgoing.numel():
            self._mail[self.rank, target].put(outgoing)

        def wait() -> None:
            if incoming.numel():
                incoming.copy_(self._mail[source, self.rank].get(timeout=_PATIENCE))

        return wait


def simulate(size: int, function: Callable[[SimulatedHops], T]) -> list[T]:
    """Call `function` for each of `size` ranks at once; return their results in order.

    On a GPU call `Ring.forward` and `Ring.backward`: autograd has one thread a device, in which
    ranks that wait for each other would wait for ever.
    """
    mail: dict[tuple[int, int], Any] = {
        (source, target): SimpleQueue() for source in range(size) for target in range(size)
    }
    ranks = [SimulatedHops(rank, size, mail) for rank in range(size)]
    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(function, ranks))
