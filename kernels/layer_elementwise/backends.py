"""Backends of a layer's elementwise work by name, and the choice of the one that serves a call."""

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch

Backend = Literal["auto", "reference", "triton"]
BACKENDS: tuple[str, ...] = get_args(Backend)
MODULES = {"reference": "reference", "triton": "functions"}


def choose(backend: str, given: torch.Tensor) -> Any:
    """The module that serves a call; "auto" is triton on a GPU.

    Raises:
        ValueError: an unknown backend, or one that cannot take the call.
    """
    if backend == "auto":
        takes = given.is_cuda and not unsupported_by_triton(given)
        return _load("triton" if takes else "reference")
    if backend not in MODULES:
        raise ValueError(f"no backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    if backend == "triton" and (reason := unsupported_by_triton(given)):
        raise ValueError(f"backend triton: {reason}")
    return _load(backend)


def unsupported_by_triton(given: torch.Tensor) -> str | None:
    """Why Triton's kernels cannot take a call; None if they can."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not (given.is_cuda or interpreted) or not _has_triton():
        return f"runs on GPUs where triton is installed, not on {given.device.type}"
    if given.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"does not take {given.dtype}"
    return None


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _load(backend: str) -> Any:
    return import_module(f"emu3_kernels.layer_elementwise.{MODULES[backend]}")
