"""Backends of 8-bit linear layers by name, and the choice of the one that serves a call."""

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from emu3_kernels.weight_only.quantized import QuantizedWeight

Backend = Literal["auto", "reference", "torch", "triton"]
BACKENDS: tuple[str, ...] = get_args(Backend)
MODULES = {"reference": "reference", "torch": "by_torch", "triton": "triton_linear"}
MOST_ROWS = 64  # in Triton: more rows are not bound by reading the weight
Multiply = Callable[[torch.Tensor, QuantizedWeight], torch.Tensor]


def choose(backend: str, x_ni: torch.Tensor, weight: QuantizedWeight) -> Multiply:
    """The function that serves a call; "auto" is triton for few rows on a GPU, else torch.

    Raises:
        ValueError: an unknown backend, or one that cannot take the call.
    """
    if backend == "auto":
        takes = x_ni.is_cuda and not unsupported_by_triton(x_ni, weight)
        return _load("triton" if takes else "torch")
    if backend not in MODULES:
        raise ValueError(f"no backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    if backend == "triton" and (reason := unsupported_by_triton(x_ni, weight)):
        raise ValueError(f"backend triton: {reason}")
    return _load(backend)


def unsupported_by_triton(x_ni: torch.Tensor, weight: QuantizedWeight) -> str | None:
    """Why Triton's kernels cannot take a product; None if they can."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not (x_ni.is_cuda or interpreted) or not _has_triton():
        return f"runs on GPUs where triton is installed, not on {x_ni.device.type}"
    dtypes = [torch.float16, torch.float32] + [torch.bfloat16] * (not interpreted)
    if x_ni.dtype not in dtypes:  # the interpreter multiplies bf16 bit patterns
        return f"does not take {x_ni.dtype}"
    if weight.values_oi.dtype != torch.int8 and not _has_e4m3(x_ni.device):
        return f"{weight.values_oi.dtype} needs a GPU of capability 8.9 or more"
    if len(x_ni) > MOST_ROWS:
        return f"{len(x_ni)} rows; it takes {MOST_ROWS} at most"
    return None


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _has_e4m3(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9)


@cache
def _load(backend: str) -> Multiply:
    return import_module(f"emu3_kernels.weight_only.{MODULES[backend]}").multiply
