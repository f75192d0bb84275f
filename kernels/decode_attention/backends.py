"""Backends of decode attention by name, and the choice of the one that serves a call."""

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from emu3_kernels.decode_attention.step import Step

Backend = Literal["auto", "reference", "torch", "triton"]
BACKENDS: tuple[str, ...] = get_args(Backend)
MODULES = {"reference": "reference", "torch": "sdpa", "triton": "triton_split"}
MOST_QUERIES = 64  # that share keys, in Triton: with more, registers spill
Attend = Callable[[Step], torch.Tensor]


def choose(backend: str, step: Step) -> Attend:
    """The function that serves a call; "auto" is triton on a GPU and torch elsewhere.

    Raises:
        ValueError: an unknown backend, or one that cannot take the call.
    """
    if backend == "auto":
        takes = step.query_bwhd.is_cuda and not unsupported_by_triton(step)
        return _load("triton" if takes else "torch")
    if backend not in MODULES:
        raise ValueError(f"no backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    if backend == "triton" and (reason := unsupported_by_triton(step)):
        raise ValueError(f"backend triton: {reason}")
    return _load(backend)


def unsupported_by_triton(step: Step) -> str | None:
    """Why Triton's kernels cannot take a step; None if they can."""
    query = step.query_bwhd
    dim, queries = step.dim, step.width * step.group
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not (query.is_cuda or interpreted) or not _has_triton():
        return f"runs on GPUs where triton is installed, not on {query.device.type}"
    dtypes = [torch.float16, torch.float32] + [torch.bfloat16] * (not interpreted)
    if query.dtype not in dtypes:  # the interpreter multiplies bf16 bit patterns
        return f"does not take {query.dtype}"
    if not 16 <= dim <= 128 or dim & (dim - 1):
        return f"head dimension {dim} is no power of 2 from 16 to 128"
    if queries > MOST_QUERIES:
        return f"{queries} queries share a KV head; {MOST_QUERIES} can"
    if any(t.stride(3) != 1 for t in (query, step.key_bkcd, step.value_bkcd)):
        return "head dimensions must be contiguous"
    return None


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _load(backend: str) -> Attend:
    return import_module(f"emu3_kernels.decode_attention.{MODULES[backend]}").attend
