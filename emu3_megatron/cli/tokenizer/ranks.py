"""Shares files among the processes that torchrun started, if it did."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among all."""

    rank: int
    size: int
    device: "torch.device"

    @classmethod
    def start(cls) -> Self:
        import torch

        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        from emu3_megatron import parallel

        mesh = parallel.start()
        return cls(mesh.rank, mesh.size, mesh.device)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Neighbours go to different processes: they often cost alike."""
        return items[self.rank :: self.size]

    def gather(self, value: T) -> list[T]:
        """What each process has, on all of them."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def on_first(self, action: Callable[[], T]) -> T:
        """What `action` gives on the first process, on all of them; its errors too."""
        if self.size == 1:
            return action()
        from emu3_megatron.parallel.votes import on_first_rank

        return on_first_rank(action)
