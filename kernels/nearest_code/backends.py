"""Backends of the search by name, and the choice of the one that serves a call."""

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Literal, get_args

import torch

Backend = Literal["auto", "reference", "torch", "triton"]
BACKENDS: tuple[str, ...] = get_args(Backend)
MODULES = {"reference": "reference", "torch": "by_torch", "triton": "triton_search"}
MOST_CHANNELS = 16  # in Triton, whose loop over them is unrolled
Search = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def choose(backend: str, rows_nc: torch.Tensor) -> Search:
    """The function that serves a call; "auto" is triton on a GPU and torch elsewhere.

    Raises:
        ValueError: an unknown backend, or one that cannot take the call.
    """
    if backend == "auto":
        takes = rows_nc.is_cuda and not unsupported_by_triton(rows_nc)
        return _load("triton" if takes else "torch")
    if backend not in MODULES:
        raise ValueError(f"no backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    if backend == "triton" and (reason := unsupported_by_triton(rows_nc)):
        raise ValueError(f"backend triton: {reason}")
    return _load(backend)


def unsupported_by_triton(rows_nc: torch.Tensor) -> str | None:
    """Why Triton's kernel cannot take the rows; None if it can."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not (rows_nc.is_cuda or interpreted) or not _has_triton():
        return f"runs on GPUs where triton is installed, not on {rows_nc.device.type}"
    if rows_nc.dtype != torch.float32:
        return f"does not take {rows_nc.dtype}"
    if rows_nc.shape[1] > MOST_CHANNELS:
        return f"{rows_nc.shape[1]} channels; it takes {MOST_CHANNELS} at most"
    return None


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _load(backend: str) -> Search:
    return import_module(f"emu3_kernels.nearest_code.{MODULES[backend]}").search
