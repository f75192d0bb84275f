"""Which row passes serve which inputs."""

import os
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from emu3_kernels import cuda
from emu3_kernels.linear_cross_entropy import reference
from emu3_kernels.linear_cross_entropy.rows import Rows

Backend = Literal["auto", "reference", "triton", "cuda", "unfused"]
BACKENDS: tuple[str, ...] = get_args(Backend)


def choose(backend: str, hidden_nh: torch.Tensor) -> Rows:
    """Row passes by name; "auto" is triton on a GPU and the reference elsewhere.

    Raises:
        ValueError: the backend cannot take such hidden states, or is not there.
    """
    if backend == "auto":
        backend = "triton" if hidden_nh.is_cuda and _triton_takes(hidden_nh) else "reference"
    if backend == "reference":
        return reference.ROWS
    if backend == "triton":
        if not _triton_takes(hidden_nh):
            raise ValueError(
                f"backend triton: {hidden_nh.dtype} on {hidden_nh.device}; it takes bf16, fp16 and "
                "fp32 on a GPU where triton is installed"
            )
        from emu3_kernels.linear_cross_entropy import triton_rows

        return triton_rows.ROWS
    if backend == "cuda":
        if hidden_nh.dtype != torch.bfloat16 or not hidden_nh.is_cuda or not cuda.available():
            raise ValueError(
                f"backend cuda: {hidden_nh.dtype} on {hidden_nh.device}; it takes bf16 on a GPU of "
                "capability 9.x after `make csrc`"
            )
        from emu3_kernels.linear_cross_entropy import cuda_rows

        return cuda_rows.ROWS
    raise ValueError(f"no backend {backend!r}; choose one of {', '.join(BACKENDS)}")


def _triton_takes(hidden_nh: torch.Tensor) -> bool:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return (
        (hidden_nh.is_cuda or interpreted)
        and hidden_nh.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and find_spec("triton") is not None
    )
