"""Copies between host and device for which neither waits until the values are needed."""

from typing import Any

import torch
from torch import Tensor


def to_device(values: Any, device: torch.device) -> Tensor:
    """Integers, int64; a GPU gets them in the order of its work."""
    tensor = torch.tensor(values, dtype=torch.int64)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class ToHost:
    """A tensor on its way to the host."""

    def __init__(self, tensor: Tensor):
        self._event: torch.cuda.Event | None = None
        if tensor.device.type == "cpu":
            self._tensor = tensor
            return
        self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._tensor.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()

    def tolist(self) -> list[Any]:
        """The values; waits for them, but not for what the device was told to do after them."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor.tolist()
