"""Backends of the search by name, and the choice of the one that serves a call."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Literal, get_args

import torch

Backend = Literal["auto", "reference", "torch"]
BACKENDS: tuple[str, ...] = get_args(Backend)
MODULES = {"reference": "reference", "torch": "by_torch"}
Search = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def choose(backend: str, rows_nc: torch.Tensor) -> Search:
    """The function that serves a call.

    Raises:
        ValueError: an unknown backend, or one that cannot take the call.
    """
    if backend == "auto":
        return _load("torch")
    if backend not in MODULES:
        raise ValueError(f"no backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    return _load(backend)


@cache
def _load(backend: str) -> Search:
    return import_module(f"emu3_kernels.nearest_code.{MODULES[backend]}").search
