"""Communication among the ranks that share a vocabulary or the tokens of a sequence.

The operations take an `Exchange` and run the same code on one rank, on a process group, and on the
simulated ranks of the tests. Results do not depend on timing: a sum over ranks is either taken in
rank order or by one collective of torch's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist


class Exchange(Protocol):
    """Communication among `size` ranks, of which this is number `rank`. Autograd sees none of it.

    Attributes:
        tokens_divided: of the hidden states of a vocabulary: each rank holds its part of the
            tokens, all parts equally long and in rank order (sequence parallelism). Otherwise all
            ranks hold the same tokens.
    """

    rank: int
    size: int
    tokens_divided: bool

    def all_gather(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Start to collect the tensors of all ranks.

        Returns:
            a function that waits and returns them, [size, ...].
        """
        ...

    def gather_tokens(self, hidden_nh: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Start to collect the hidden states of all tokens, from this rank's.

        Returns:
            a function that waits and returns them.
        """
        ...

    def sum_tokens(self, gradient_nh: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Start to add up every rank's gradient of all tokens. The argument may be overwritten.

        Returns:
            a function that waits and returns the gradient of this rank's hidden states.
        """
        ...

    def send_receive(
        self, outgoing: torch.Tensor, target: int, incoming: torch.Tensor, source: int
    ) -> Callable[[], None]:
        """Start to send one tensor to a rank and to fill another from a rank.

        A tensor without elements is not sent, and its receiver must not expect it. Two ranks must
        start the messages between them in the same order.

        Returns:
            a function that waits until `incoming` is filled and `outgoing` may be reused.
        """
        ...


@dataclass(frozen=True)
class NoExchange:
    """One rank holds everything."""

    rank: int = 0
    size: int = 1
    tokens_divided: bool = False

    def all_gather(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: tensor[None]

    def gather_tokens(self, hidden_nh: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: hidden_nh

    def sum_tokens(self, gradient_nh: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: gradient_nh

    def send_receive(
        self, outgoing: torch.Tensor, target: int, incoming: torch.Tensor, source: int
    ) -> Callable[[], None]:
        raise AssertionError("a single rank has no other to send to")


class GroupExchange:
    """Communication over a torch.distributed process group.

    Args:
        tokens_divided: see `Exchange`.
        point_to_point: messages between two ranks will be sent. All ranks of the group must then
            make their exchange at the same time, since this waits for all of them.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        *,
        tokens_divided: bool = False,
        point_to_point: bool = False,
    ):
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self.tokens_divided = tokens_divided
        self.point_to_point = point_to_point
        if point_to_point:
            # NCCL builds its communicator at a group's first call, which all ranks must join, and
            # not every rank takes part in the first message.
            dist.barrier(group)

    def all_gather(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        gathered = tensor.new_empty(self.size * tensor.shape[0], *tensor.shape[1:])
        work = dist.all_gather_into_tensor(gathered, tensor, group=self.group, async_op=True)

        def wait() -> torch.Tensor:
            work.wait()
            return gathered.view(self.size, *tensor.shape)

        return wait

    def gather_tokens(self, hidden_nh: torch.Tensor) -> Callable[[], torch.Tensor]:
        if not self.tokens_divided:
            return lambda: hidden_nh
        gathered = self.all_gather(hidden_nh.contiguous())
        return lambda: gathered().flatten(0, 1)

    def sum_tokens(self, gradient_nh: torch.Tensor) -> Callable[[], torch.Tensor]:
        gradient_nh = gradient_nh.contiguous()  # a collective fills a copy, which must be returned
        if self.tokens_divided:
            count = gradient_nh.shape[0] // self.size
            own_nh = gradient_nh.new_empty(count, *gradient_nh.shape[1:])
            work = dist.reduce_scatter_tensor(own_nh, gradient_nh, group=self.group, async_op=True)
        else:
            own_nh = gradient_nh
            work = dist.all_reduce(gradient_nh, group=self.group, async_op=True)

        def wait() -> torch.Tensor:
            work.wait()
            return own_nh

        return wait

    def send_receive(
        self, outgoing: torch.Tensor, target: int, incoming: torch.Tensor, source: int
    ) -> Callable[[], None]:
        assert self.point_to_point, "this exchange was made without point_to_point=True"
        # One batch, which NCCL runs on a stream of its own beside the computation.
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
