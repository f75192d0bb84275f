"""What a data worker sends to its rank: a batch in one piece of shared memory.

Torch sends each tensor in a piece of its own, which holds a file open on both sides: a step of some
hundred tensors was too much for a process that may hold 1,024.
"""

import io
import math
import pickle
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from emu3_megatron.errors import InputError

_ALIGNED = 64  # bytes


@dataclass(frozen=True)
class Parcel:
    """A value with its tensors side by side in shared memory.

    Attributes:
        data: the bytes of the tensors.
        rest: the value without them, pickled.
    """

    data: Tensor
    rest: bytes

    @classmethod
    def of(cls, value: Any) -> "Parcel":
        """Raises InputError: shared memory is too small."""
        taken = _Taken()
        taken.dump(value)
        data = _shared(taken.size)
        for start, tensor in taken.tensors:
            flat = tensor.reshape(-1).view(torch.uint8)
            data[start : start + len(flat)] = flat
        return cls(data, taken.rest.getvalue())

    def value(self) -> Any:
        """The value again; its tensors look into the parcel."""
        return _Given(self).load()

    def pin_memory(self) -> "Parcel":
        return replace(self, data=self.data.pin_memory())


class _Taken(pickle.Pickler):
    """Pickles a value without its tensors."""

    def __init__(self) -> None:
        self.rest, self.size = io.BytesIO(), 0
        self.tensors: list[tuple[int, Tensor]] = []  # each with where it begins
        super().__init__(self.rest)

    def persistent_id(self, item: Any) -> Any:
        if not isinstance(item, Tensor):
            return None
        start = self.size
        self.tensors.append((start, item))
        self.size += math.ceil(item.nbytes / _ALIGNED) * _ALIGNED
        return start, item.dtype, tuple(item.shape)


class _Given(pickle.Unpickler):
    def __init__(self, parcel: Parcel):
        self.data = parcel.data
        super().__init__(io.BytesIO(parcel.rest))

    def persistent_load(self, place: Any) -> Tensor:
        start, dtype, shape = place
        end = start + math.prod(shape) * dtype.itemsize
        return self.data[start:end].view(dtype).view(shape)


def _shared(size: int) -> Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8).share_memory_()
    except RuntimeError as error:
        raise InputError(too_small(size)) from error


def too_small(size: int | None = None) -> str:
    """What to do when shared memory is full."""
    needed = "" if size is None else f" for a batch of {size / 1e6:,.1f} MB"
    return (
        f"data.workers: /dev/shm is too small{needed}; start the container with --shm-size=8g or "
        "--ipc=host, or set data.workers=0"
    )
