"""Base of objects that hold tensors and move between pageable, pinned and device memory."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import torch

Move = Callable[[torch.Tensor], torch.Tensor]


class Movable(ABC):
    """Has `to` and `pin_memory` as tensors have them; a DataLoader with `pin_memory` calls it."""

    @abstractmethod
    def map_tensors(self, move: Move) -> Self:
        """A copy that holds `move(tensor)` in the place of each tensor."""

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Self:
        """A copy on a device.

        Args:
            non_blocking: do not wait for copies from pinned memory; what the current stream does
                next finds them done. Copies to the CPU are always waited for, as its reads would
                not wait.
        """
        non_blocking = non_blocking and torch.device(device).type != "cpu"
        return self.map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """A copy in pinned memory, from which copies to a GPU need no waiting."""
        return self.map_tensors(torch.Tensor.pin_memory)
