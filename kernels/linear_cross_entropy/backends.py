"""Backends of the head and its loss by name, and the choice of the row passes of a call."""

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from emu3_kernels import cuda
from emu3_kernels.linear_cross_entropy.rows import Rows

Backend = Literal["auto", "reference", "triton", "cuda", "unfused"]
BACKENDS: tuple[str, ...] = get_args(Backend)
MODULES = {"reference": "reference", "triton": "triton_rows", "cuda": "cuda_rows"}
# Of "auto" by device, best first; on other devices the reference.
CANDIDATES = {"cuda": ("triton", "reference")}


def choose(backend: str, hidden_nh: torch.Tensor) -> Rows:
    """Row passes by name; "auto" is triton on a GPU and the reference elsewhere.

    Raises:
        ValueError: an unknown backend, or one that cannot take such hidden states.
    """
    if backend == "auto":
        candidates = CANDIDATES.get(hidden_nh.device.type, ("reference",))
        backend = next(name for name in candidates if not unsupported_reason(name, hidden_nh))
    if backend not in MODULES:
        raise ValueError(f"no backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    if reason := unsupported_reason(backend, hidden_nh):
        raise ValueError(f"backend {backend}: {reason}")
    return import_module(f"emu3_kernels.linear_cross_entropy.{MODULES[backend]}").ROWS


def unsupported_reason(backend: str, hidden_nh: torch.Tensor) -> str | None:
    """Why a backend cannot take such hidden states; None if it can."""
    given = f"{hidden_nh.dtype} on {hidden_nh.device}"
    if backend == "triton" and not _triton_takes(hidden_nh):
        return f"{given}; it takes bf16, fp16 and fp32 on a GPU where triton is installed"
    if backend == "cuda" and not _cuda_takes(hidden_nh):
        return f"{given}; it takes bf16 on a GPU of capability 9.x after `make csrc`"
    return None


def _triton_takes(hidden_nh: torch.Tensor) -> bool:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return (
        (hidden_nh.is_cuda or interpreted)
        and hidden_nh.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and find_spec("triton") is not None
    )


def _cuda_takes(hidden_nh: torch.Tensor) -> bool:
    return hidden_nh.dtype == torch.bfloat16 and hidden_nh.is_cuda and cuda.available()
