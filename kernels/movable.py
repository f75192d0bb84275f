"""Base of objects that hold tensors and move between pageable, pinned and device memory."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Self

import torch

Move = Callable[[torch.Tensor], torch.Tensor]

_ALIGNED = 64  # bytes


class Movable(ABC):
    """Has `to` and `pin_memory` as tensors have them; a DataLoader with `pin_memory` calls it."""

    @abstractmethod
    def map_tensors(self, move: Move) -> Self:
        """A copy that holds `move(tensor)` in the place of each tensor."""

    def to(self, device: torch.device | str) -> Self:
        """A copy on a device. From the CPU all tensors go by one copy, out of pinned memory.

        The copy to a GPU is not waited for: what the current stream does next finds it done.
        """
        return self._map_all(lambda tensors: to_device(tensors, torch.device(device)))

    def pin_memory(self) -> Self:
        """A copy in pinned memory, from which copies to a GPU need no waiting."""
        return self._map_all(lambda tensors: [tensor.pin_memory() for tensor in tensors])

    def _map_all(self, move: Callable[[list[torch.Tensor]], list[torch.Tensor]]) -> Self:
        """As `map_tensors`, by one call; a tensor that is held twice moves once."""
        found: dict[int, torch.Tensor] = {}
        self.map_tensors(lambda tensor: found.setdefault(id(tensor), tensor))
        moved = dict(zip(found, move([*found.values()]), strict=True))
        return self.map_tensors(lambda tensor: moved[id(tensor)])


def to_device(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Copies on a device; from the CPU all by one copy, see `Movable.to`."""
    if device.type == "cpu" or any(tensor.device.type != "cpu" for tensor in tensors):
        return [tensor.to(device) for tensor in tensors]
    if not _side_by_side(tensors):
        tensors = _put_side_by_side(tensors, pinned=device.type == "cuda")
    first = min(_start(tensor) for tensor in tensors) // _ALIGNED * _ALIGNED
    end = max(_start(tensor) + tensor.nbytes for tensor in tensors)
    memory = torch.empty(0, dtype=torch.uint8).set_(tensors[0].untyped_storage())
    moved = memory[first:end].to(device, non_blocking=True)
    return [_look_into(moved, _start(tensor) - first, tensor) for tensor in tensors]


def _side_by_side(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether they lie in one piece of pinned memory, as what a data worker sent does."""
    return (
        all(tensor.is_contiguous() and _start(tensor) % _ALIGNED == 0 for tensor in tensors)
        and len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
        and tensors[0].is_pinned()
    )


def _put_side_by_side(tensors: Sequence[torch.Tensor], pinned: bool) -> list[torch.Tensor]:
    starts, size = [], 0
    for tensor in tensors:
        starts.append(size)
        size += math.ceil(tensor.nbytes / _ALIGNED) * _ALIGNED
    memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    placed = [_look_into(memory, *pair) for pair in zip(starts, tensors, strict=True)]
    for place, tensor in zip(placed, tensors, strict=True):
        place.copy_(tensor)
    return placed


def _look_into(memory: torch.Tensor, start: int, like: torch.Tensor) -> torch.Tensor:
    return memory[start : start + like.nbytes].view(like.dtype).view(like.shape)


def _start(tensor: torch.Tensor) -> int:
    """Of its first byte, in its storage."""
    return tensor.storage_offset() * tensor.element_size()
