"""The backend of our Triton kernels: launch shapes and launches."""

import math
import os
from typing import Any, NamedTuple

import torch
from emu3_kernels.attention_tile.dropout import Dropout
from emu3_kernels.attention_tile.implementation import Gradients, Implementation, Running
from emu3_kernels.attention_tile.tile import Tile
from emu3_kernels.attention_tile.triton_backward import dkdv_kernel, dq_kernel
from emu3_kernels.attention_tile.triton_forward import forward_kernel


class Launch(NamedTuple):
    """Queries and keys of a block, warps that work on it, blocks loaded ahead."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# For Hopper's 227 KiB of shared memory. HALF is chosen by what compiles without spills inside of
# loops (tests/kernels/test_attention_tile_compiled.py), not by timings.
HALF = {
    "forward": Launch(128, 64, 8, 3),
    "dq": Launch(128, 64, 8, 2),
    "dkdv": Launch(32, 128, 8, 3),
}
SINGLE = {
    "forward": Launch(64, 32, 8, 2),
    "dq": Launch(64, 32, 8, 2),
    "dkdv": Launch(32, 64, 8, 2),
}


def unsupported_reason(tile: Tile) -> str | None:
    """See `Implementation`."""
    q_thd = tile.q_thd
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    dtypes = [torch.float16, torch.float32] + [torch.bfloat16] * (not interpreted)
    dim = q_thd.shape[2]
    if q_thd.device.type != "cuda" and not interpreted:
        return f"runs on GPUs, not on {q_thd.device.type}"
    if q_thd.dtype not in dtypes:  # the interpreter multiplies bf16 bit patterns
        return f"does not take {q_thd.dtype}"
    if not 16 <= dim <= 128 or dim & (dim - 1):
        return f"head dimension {dim} is no power of 2 from 16 to 128"
    return None


def forward(tile: Tile, running: Running | None) -> Running:
    """See `attention_tile`."""
    (q_thd, k_thd, v_thd), ranges = tile.inputs, tile.ranges
    tokens, heads, _ = q_thd.shape
    out_thd, lse_ht = running or (
        torch.empty(q_thd.shape, dtype=torch.float32, device=q_thd.device),
        torch.empty(heads, tokens, dtype=torch.float32, device=q_thd.device),
    )
    launch = launches(q_thd)["forward"]
    order = ranges.heaviest_first(launch.block_m)
    forward_kernel[(len(order) * heads,)](
        *(q_thd, k_thd, v_thd, out_thd, lse_ht),
        *(ranges.first_q, ranges.last_q, order, *_indices(tile)),
        *_strides(q_thd, k_thd, v_thd, out_thd),
        lse_ht.stride(0),
        tokens,
        tile.scale * math.log2(math.e),
        *_dropout(tile.dropout),
        HEADS=heads,
        RUNNING=running is not None,
        **_constants(tile, launch),
    )
    return out_thd, lse_ht


def backward(
    tile: Tile,
    dout_thd: torch.Tensor,
    delta_ht: torch.Tensor,
    lse_ht: torch.Tensor,
    gradients: Gradients,
) -> None:
    """See `attention_tile_backward`."""
    (q_thd, k_thd, v_thd), ranges = tile.inputs, tile.ranges
    dq_thd, dk_thd, dv_thd = gradients
    dout_thd = dout_thd.to(q_thd.dtype)
    inputs = (dout_thd, q_thd, k_thd, v_thd, delta_ht, lse_ht)
    strides = _strides(dout_thd, q_thd, k_thd, v_thd)
    strides += (delta_ht.stride(0), lse_ht.stride(0))
    indices = _indices(tile)

    launch = launches(q_thd)["dq"]
    order = ranges.heaviest_first(launch.block_m)
    dq_kernel[(len(order) * q_thd.shape[1],)](
        *(*inputs, dq_thd, ranges.first_q, ranges.last_q, order, *indices),
        *(*strides, *_strides(dq_thd)),
        *(ranges.queries, tile.scale, *_dropout(tile.dropout)),
        HEADS=q_thd.shape[1],
        **_constants(tile, launch),
    )
    launch = launches(q_thd)["dkdv"]
    order = ranges.heaviest_first(launch.block_n, by_key=True)
    dkdv_kernel[(len(order) * k_thd.shape[1],)](
        *(*inputs, dk_thd, dv_thd, ranges.first_q, ranges.last_q, *ranges.by_key, order, *indices),
        *(*strides, *_strides(dk_thd, dv_thd)),
        *(ranges.keys, tile.scale, *_dropout(tile.dropout)),
        KV_HEADS=k_thd.shape[1],
        **_constants(tile, launch),
    )


def launches(q_thd: torch.Tensor) -> dict[str, Launch]:
    """Launches by kernel: one table for 16-bit inputs, one for fp32, for all head dimensions."""
    return HALF if q_thd.element_size() == 2 else SINGLE


def _constants(tile: Tile, launch: Launch) -> dict[str, Any]:
    return {
        "GROUP": tile.q_thd.shape[1] // tile.k_thd.shape[1],
        "DIM": tile.q_thd.shape[2],
        "BLOCK_M": launch.block_m,
        "BLOCK_N": launch.block_n,
        "DROPOUT": tile.dropout is not None,
        "PRECISION": "tf32x3",  # of fp32 inputs alone: three tensor core products, near fp32
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
    }


def _strides(*tensors_thd: torch.Tensor) -> tuple[int, ...]:
    """Of each tensor the strides of tokens and of heads."""
    if any(t.stride(2) != 1 for t in tensors_thd):
        raise ValueError("backend triton: head dimensions must be contiguous")
    return tuple(stride for t in tensors_thd for stride in t.stride()[:2])


def _indices(tile: Tile) -> tuple[torch.Tensor, torch.Tensor]:
    """Global positions of queries and keys; without dropout the kernels do not read them."""
    if tile.dropout is None:
        return tile.ranges.first_q, tile.ranges.first_q
    return tile.dropout.query_index_t, tile.dropout.key_index_t


def _dropout(dropout: Dropout | None) -> tuple[int, int, int, float]:
    """key, threshold, first head and factor; hashes as int32, so that Triton sees one type."""
    if dropout is None:
        return 0, 0, 0, 1.0
    signed = lambda word: word - 2**32 if word >= 2**31 else word
    factor = 1 / (1 - dropout.p)
    return signed(dropout.key), signed(dropout.threshold), dropout.first_head, factor


IMPLEMENTATION = Implementation(unsupported_reason, forward, backward)
