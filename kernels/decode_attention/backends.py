"""Backends of decode attention by name, and the choice of the one that serves a call."""

from collections.abc import Callable
from importlib import import_module
from typing import Literal, get_args

import torch
from emu3_kernels.decode_attention.step import Step

Backend = Literal["auto", "reference", "torch"]
BACKENDS: tuple[str, ...] = get_args(Backend)
MODULES = {"reference": "reference", "torch": "sdpa"}
Attend = Callable[[Step], torch.Tensor]


def choose(backend: str, step: Step) -> Attend:
    """The function that serves a call.

    Raises:
        ValueError: an unknown backend, or one that cannot take the call.
    """
    if backend == "auto":
        backend = "torch"
    if backend not in MODULES:
        raise ValueError(f"no backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    return import_module(f"emu3_kernels.decode_attention.{MODULES[backend]}").attend
