"""Backends of SiLU after GroupNorm by name, and the choice of the one that serves a call."""

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Literal, get_args

import torch

Backend = Literal["auto", "reference", "triton"]
BACKENDS: tuple[str, ...] = get_args(Backend)
MODULES = {"reference": "reference", "triton": "triton_norm"}
Norm = Callable[..., torch.Tensor]


def choose(backend: str, input_nchw: torch.Tensor) -> Norm:
    """The function that serves a call; "auto" is triton on a GPU.

    Raises:
        ValueError: an unknown backend, or one that cannot take the call.
    """
    if backend == "auto":
        takes = input_nchw.is_cuda and not unsupported_by_triton(input_nchw)
        return _load("triton" if takes else "reference")
    if backend not in MODULES:
        raise ValueError(f"no backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    if backend == "triton" and (reason := unsupported_by_triton(input_nchw)):
        raise ValueError(f"backend triton: {reason}")
    return _load(backend)


def unsupported_by_triton(input_nchw: torch.Tensor) -> str | None:
    """Why Triton's kernels cannot take the input; None if it can."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not (input_nchw.is_cuda or interpreted) or not _has_triton():
        return f"runs on GPUs where triton is installed, not on {input_nchw.device.type}"
    if input_nchw.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"does not take {input_nchw.dtype}"
    return None


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _load(backend: str) -> Norm:
    return import_module(f"emu3_kernels.group_norm_silu.{MODULES[backend]}").normed
