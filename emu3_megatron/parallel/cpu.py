"""Lets Megatron-core run without CUDA.

Megatron-core asks for `device="cuda"`, the current device, streams, CUDA's random state and the
type names of CUDA tensors by name. On a machine without a GPU those names are made to mean the
CPU. Nothing else of the project knows; with a GPU nothing is touched.
"""

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._device import _device_constructors

_FACTORIES = ("empty", "zeros", "ones", "full", "tensor", "arange", "rand", "randn")
_FACTORIES_LIKE = ("empty_like", "zeros_like", "ones_like", "full_like")


def install() -> None:
    """Redirect CUDA to the CPU, once, when there is no GPU."""
    if torch.cuda.is_available() or hasattr(torch.cuda, "emu3_stand_in"):
        return
    torch.cuda.emu3_stand_in = True  # type: ignore[attr-defined]
    _redirect_factories()
    _redirect_tensors()
    _redirect_streams()
    _redirect_random_state()


def _redirect_factories() -> None:
    # `with torch.device(...)` knows factories by identity, from a set that it makes at first use.
    _device_constructors()
    for name in _FACTORIES + _FACTORIES_LIKE:
        setattr(torch, name, _on_cpu(getattr(torch, name)))


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def redirected(*args: Any, **kwargs: Any) -> torch.Tensor:
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device"] = torch.device("cpu")
            kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return redirected


def _redirect_tensors() -> None:
    type_of = torch.Tensor.type

    def type_as_on_cuda(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = type_of(self, *args, **kwargs)
        # Megatron's optimizers sort parameters by these names.
        if isinstance(result, str) and result.startswith("torch.") and self.device.type == "cpu":
            return result.replace("torch.", "torch.cuda.", 1)
        return result

    torch.Tensor.type = type_as_on_cuda  # type: ignore[method-assign,assignment]
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign,assignment,misc]
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign,assignment]


class _Stream:
    """A stream on which everything has happened by the time one asks; an event likewise."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None

    def query(self) -> bool:
        return True


def _redirect_streams() -> None:
    cuda: Any = torch.cuda
    cuda.current_device = lambda: torch.device("cpu")
    cuda.device_count = lambda: 1
    cuda.Stream = cuda.Event = _Stream
    cuda.current_stream = cuda.default_stream = _Stream
    cuda.stream = lambda stream: contextlib.nullcontext()
    for name in ("set_device", "synchronize", "empty_cache"):
        setattr(cuda, name, lambda *args, **kwargs: None)


def _redirect_random_state() -> None:
    """Megatron's tracker of CUDA random states keeps the CPU generator's states instead."""
    cuda: Any = torch.cuda
    cuda.manual_seed = torch.default_generator.manual_seed
    cuda.get_rng_state = cuda.random.get_rng_state = lambda device=None: torch.get_rng_state()
    cuda.set_rng_state = lambda state, device=None: torch.set_rng_state(state)

    from megatron.core.tensor_parallel import random

    def set_state(state: torch.Tensor, device: int = -1, graph_safe: bool = False) -> None:
        torch.set_rng_state(state)

    random._set_cuda_rng_state = set_state
    # It warns whenever the CPU's random state moves inside a fork, which here is the point.
    logging.getLogger(random.__name__).setLevel(logging.ERROR)
