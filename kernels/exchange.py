"""How the ranks that share a vocabulary (or a ring) talk, so that one code path serves all."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist


class Exchange(Protocol):
    """Reductions over `size` ranks, of which this is number `rank`."""

    rank: int
    size: int

    def max(self, tensor: torch.Tensor) -> torch.Tensor:
        """Elementwise maximum over ranks; no gradient."""
        ...

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Elementwise sum over ranks; each rank's share receives the sum's gradient."""
        ...


@dataclass(frozen=True)
class NoExchange:
    """One rank holds everything."""

    rank: int = 0
    size: int = 1

    def max(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


class GroupExchange:
    """Reductions over a torch.distributed process group."""

    def __init__(self, group: dist.ProcessGroup):
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)

    def max(self, tensor: torch.Tensor) -> torch.Tensor:
        result = tensor.detach().clone()
        dist.all_reduce(result, op=dist.ReduceOp.MAX, group=self.group)
        return result

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return _GroupSum.apply(tensor, self.group)


class _GroupSum(torch.autograd.Function):
    """Every rank goes on to compute the same loss from the sum, so its gradient passes as it is."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        result = tensor.clone()
        dist.all_reduce(result, group=group)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient, None
