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
# Of "auto" on a GPU, best first. `cuda` reads and writes a logit once where a rank holds the whole
# vocabulary, 4 bytes for triton's 6, and was the faster one there in every case on an H200. Among
# ranks both take two passes, and neither was always faster.
ALONE, AMONG_RANKS = ("cuda", "triton", "reference"), ("triton", "reference")


def choose(
    backend: str, hidden_nh: torch.Tensor, weight_vh: torch.Tensor | None = None, ranks: int = 1
) -> Rows:
    """Row passes by name; "auto" takes the best of a GPU's and the reference elsewhere.

    Args:
        weight_vh: the head's; None says that its size does not matter yet.
        ranks: that share the vocabulary.

    Raises:
        ValueError: an unknown backend, or one that cannot take such hidden states.
    """
    if backend == "auto":
        backend = _best(hidden_nh, weight_vh, ranks)
    if backend not in MODULES:
        raise ValueError(f"no backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    if reason := unsupported_reason(backend, hidden_nh):
        raise ValueError(f"backend {backend}: {reason}")
    return import_module(f"emu3_kernels.linear_cross_entropy.{MODULES[backend]}").ROWS


def _best(hidden_nh: torch.Tensor, weight_vh: torch.Tensor | None, ranks: int) -> str:
    if not hidden_nh.is_cuda:
        return "reference"
    fits = weight_vh is None or len(weight_vh) <= cuda.MAX_COLUMNS
    candidates = ALONE if ranks == 1 and fits else AMONG_RANKS
    return next(name for name in candidates if not unsupported_reason(name, hidden_nh))


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
