"""What stays in fp32 under `torch.autocast`, where convolutions run in bf16."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

R = TypeVar("R")


def full_precision(function: Callable[..., R]) -> Callable[..., R]:
    """Decorates a method on tensors: it runs in fp32, and its bf16 inputs become fp32 first."""

    @wraps(function)
    def run(*args: Any) -> R:
        device = next(value.device.type for value in args if isinstance(value, Tensor))
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return function(*args)
        with torch.autocast(device, enabled=False):
            return function(*map(_widened, args))

    return run


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16):
        return value.float()
    return value


class FullPrecisionConv2d(nn.Conv2d):
    """Its output becomes latents or pixels, which are compared with fp32 ones."""

    @full_precision
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)
