"""What a decoder layer computes between its matrix products and attention, forward and backward.

Each is one pass over memory on a GPU: residual, dropout and RMSNorm; rotary embedding; SwiGLU.
"""

import torch
from emu3_kernels.layer_elementwise.backends import BACKENDS, Backend, choose

__all__ = [
    "BACKENDS",
    "Backend",
    "add_norm",
    "dropout_add",
    "fill_norm",
    "fill_swiglu",
    "rotate_qkv",
    "swiglu",
]


def add_norm(
    residual: torch.Tensor,
    branch: torch.Tensor | None,
    weight_h: torch.Tensor,
    eps: float,
    dropout: float = 0.0,
    *,
    backend: Backend = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of a residual stream and a branch, and its RMSNorm.

    The norm is x / rms(x) in fp32, cast back to x's dtype, then times the weight
    (modeling_emu3.py). It is of the sum as it is returned, so that the norm of that sum alone is
    the same to the bit.

    Args:
        residual: [..., h].
        branch: the same shape; without it the residual stream is the sum.
        dropout: chance that a number of the branch is dropped. Masks come from torch's generator of
            the device.
        backend: "reference" is plain torch; "triton" is ours for GPUs. "auto" takes what fits.

    Returns:
        the sum and the norm.

    Raises:
        ValueError: shapes do not fit, or the backend cannot take them.
    """
    if branch is not None and branch.shape != residual.shape:
        raise ValueError(f"residual {[*residual.shape]} and branch {[*branch.shape]} do not fit")
    if weight_h.shape != residual.shape[-1:]:
        raise ValueError(f"weight {[*weight_h.shape]} does not fit {[*residual.shape]}")
    return choose(backend, residual).add_norm(residual, branch, weight_h, eps, dropout)


def dropout_add(
    residual: torch.Tensor,
    branch: torch.Tensor,
    dropout: float = 0.0,
    *,
    backend: Backend = "auto",
) -> torch.Tensor:
    """The sum of a residual stream and a branch with dropout: `add_norm` without the norm."""
    if branch.shape != residual.shape:
        raise ValueError(f"residual {[*residual.shape]} and branch {[*branch.shape]} do not fit")
    return choose(backend, residual).dropout_add(residual, branch, dropout)


def rotate_qkv(
    mixed_sbc: torch.Tensor,
    rotary_2sb1d: torch.Tensor,
    groups: int,
    *,
    backend: Backend = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values out of one matrix product, queries and keys rotated.

    Args:
        mixed_sbc: the product; for each group its queries, its key and its value.
        rotary_2sb1d: cosines, then sines, of each token; the second half of d repeats the first.
        groups: of queries that share a key, which are all that this rank has.

    Returns:
        query [s, b, heads, d], key [s, b, groups, d], value likewise; rows may lie in memory as
        [b, s, heads, d].

    Raises:
        ValueError: shapes do not fit, or the backend cannot take them.
    """
    dim = rotary_2sb1d.shape[-1]
    heads, rest = divmod(mixed_sbc.shape[-1], groups * dim)
    if rest or heads < 3 or rotary_2sb1d.shape != (2, *mixed_sbc.shape[:2], 1, dim) or dim % 2:
        raise ValueError(
            f"{[*mixed_sbc.shape]} does not divide into {groups} groups of heads for cosines and "
            f"sines {[*rotary_2sb1d.shape]}"
        )
    return choose(backend, mixed_sbc).rotate_qkv(mixed_sbc, rotary_2sb1d, groups)


def swiglu(gate_up: torch.Tensor, *, backend: Backend = "auto") -> torch.Tensor:
    """silu(gate) * up.

    Args:
        gate_up: [..., 2 f], the gates first.

    Returns:
        [..., f]

    Raises:
        ValueError: gates and the others are not alike many, or the backend cannot take them.
    """
    if gate_up.shape[-1] % 2:
        raise ValueError(f"{[*gate_up.shape]} does not divide into gates and what they scale")
    return choose(backend, gate_up).swiglu(gate_up)


@torch.no_grad()
def fill_norm(
    out: torch.Tensor,
    total: torch.Tensor,
    weight_h: torch.Tensor,
    eps: float,
    *,
    backend: Backend = "auto",
) -> None:
    """Write into a tensor the norm that `add_norm` returned beside this sum, the same to the bit.

    Nothing is recorded: this is for a backward pass that needs the numbers again.
    """
    choose(backend, total).fill_norm(out, total, weight_h, eps)


@torch.no_grad()
def fill_swiglu(out: torch.Tensor, gate_up: torch.Tensor, *, backend: Backend = "auto") -> None:
    """Write into a tensor what `swiglu` returned, the same to the bit; see `fill_norm`."""
    choose(backend, gate_up).fill_swiglu(out, gate_up)
