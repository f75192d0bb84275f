"""The backend of our Triton kernels: launch shapes and launches."""

import math
import os
from typing import Any, NamedTuple

import torch
import triton
from emu3_kernels.attention_tile.dropout import Dropout
from emu3_kernels.attention_tile.implementation import Gradients, Implementation, Running
from emu3_kernels.attention_tile.splitting import MULTIPROCESSORS, split
from emu3_kernels.attention_tile.tile import Tile
from emu3_kernels.attention_tile.triton_backward import dkdv_kernel, dq_kernel, sum_parts_kernel
from emu3_kernels.attention_tile.triton_forward import forward_kernel
from emu3_kernels.attention_tile.triton_masks import words_kernel


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
SUM_ROWS = 16  # keys of a program that adds up parts of dk and dv
WORDS_BLOCK = 1024  # queries or keys of a program that draws dropout's words


def unsupported_reason(tile: Tile) -> str | None:
    """See `Implementation`."""
    q_thd = tile.q_thd
    dtypes = [torch.float16, torch.float32] + [torch.bfloat16] * (not _interpreted())
    dim = q_thd.shape[2]
    if q_thd.device.type != "cuda" and not _interpreted():
        return f"runs on GPUs, not on {q_thd.device.type}"
    if q_thd.dtype not in dtypes:  # the interpreter multiplies bf16 bit patterns
        return f"does not take {q_thd.dtype}"
    if not 16 <= dim <= 128 or dim & (dim - 1):
        return f"head dimension {dim} is no power of 2 from 16 to 128"
    return None


def forward(tile: Tile, running: Running | None) -> Running:
    """See `attention_tile`."""
    if running is None:
        return _forward(tile, _empty_out(tile, torch.float32), merge=False)
    return _forward(tile, running, merge=True)


def forward_alone(tile: Tile) -> Running:
    """See `attention_tile_alone`."""
    return _forward(tile, _empty_out(tile, tile.q_thd.dtype), merge=False)


def backward(
    tile: Tile,
    dout_thd: torch.Tensor,
    delta_ht: torch.Tensor,
    lse_ht: torch.Tensor,
    gradients: Gradients,
) -> None:
    """See `attention_tile_backward`."""
    _backward(tile, (dout_thd, delta_ht, lse_ht), gradients, add=True)


def backward_alone(
    tile: Tile, dout_thd: torch.Tensor, delta_ht: torch.Tensor, lse_ht: torch.Tensor
) -> Gradients:
    """See `attention_tile_backward_alone`."""
    dq, dk, dv = (torch.empty_like(t) for t in tile.inputs)
    _backward(tile, (dout_thd, delta_ht, lse_ht), (dq, dk, dv), add=False)
    return dq, dk, dv


def _empty_out(tile: Tile, dtype: torch.dtype) -> Running:
    q_thd = tile.q_thd
    out_thd = torch.empty(q_thd.shape, dtype=dtype, device=q_thd.device)
    return out_thd, q_thd.new_empty(q_thd.shape[1], q_thd.shape[0], dtype=torch.float32)


def _forward(tile: Tile, result: Running, merge: bool) -> Running:
    """Write out and lse into the result, or merge them with what it holds."""
    (q_thd, k_thd, v_thd), ranges = tile.inputs, tile.ranges
    out_thd, lse_ht = result
    tokens, heads, _ = q_thd.shape
    launch = launches(q_thd)["forward"]
    order = ranges.heaviest_first(launch.block_m)
    with torch.cuda.device_of(q_thd):
        forward_kernel[(len(order) * heads,)](
            *(q_thd, k_thd, v_thd, out_thd, lse_ht),
            *(ranges.first_q, ranges.last_q, order, *_words(tile)),
            *_strides(q_thd, k_thd, v_thd, out_thd),
            lse_ht.stride(0),
            tokens,
            tile.scale * math.log2(math.e),
            *_threshold(tile.dropout),
            HEADS=heads,
            RUNNING=merge,
            **_constants(tile, launch),
        )
    return out_thd, lse_ht


def _backward(
    tile: Tile,
    of_out: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    gradients: Gradients,
    add: bool,
) -> None:
    """Write the gradients, or add them to what there is; of_out are dout, delta and lse."""
    dout_thd, delta_ht, lse_ht = of_out
    dout_thd = dout_thd.to(tile.q_thd.dtype)
    inputs = (dout_thd, *tile.inputs, delta_ht, lse_ht)
    strides = (*_strides(dout_thd, *tile.inputs), delta_ht.stride(0), lse_ht.stride(0))
    dq_thd, dk_thd, dv_thd = gradients
    with torch.cuda.device_of(tile.q_thd):
        words = _words(tile)
        _launch_dq(tile, inputs, strides, words, dq_thd, add)
        _launch_dkdv(tile, inputs, strides, words, (dk_thd, dv_thd), add)


def _launch_dq(
    tile: Tile,
    inputs: tuple[torch.Tensor, ...],
    strides: tuple[int, ...],
    words: tuple[torch.Tensor, torch.Tensor],
    dq_thd: torch.Tensor,
    add: bool,
) -> None:
    ranges, heads = tile.ranges, tile.q_thd.shape[1]
    launch = launches(tile.q_thd)["dq"]
    order = ranges.heaviest_first(launch.block_m)
    dq_kernel[(len(order) * heads,)](
        *(*inputs, dq_thd, ranges.first_q, ranges.last_q, order, *words),
        *(*strides, *_strides(dq_thd)),
        *(ranges.queries, tile.scale, *_threshold(tile.dropout)),
        HEADS=heads,
        ADD=add,
        **_constants(tile, launch),
    )


def _launch_dkdv(
    tile: Tile,
    inputs: tuple[torch.Tensor, ...],
    strides: tuple[int, ...],
    words: tuple[torch.Tensor, torch.Tensor],
    gradients: tuple[torch.Tensor, torch.Tensor],
    add: bool,
) -> None:
    (q_thd, k_thd, _), ranges = tile.inputs, tile.ranges
    keys, kv_heads, dim = k_thd.shape
    launch = launches(q_thd)["dkdv"]
    order = ranges.heaviest_first(launch.block_n, by_key=True)
    shares = split(
        ranges, q_thd.shape[1], kv_heads, launch.block_m, launch.block_n, _processors(q_thd.device)
    )
    whole = shares.parts == 1
    shape = () if whole else (shares.parts, 2, keys, kv_heads, dim)
    parts = torch.empty(shape, dtype=torch.float32, device=q_thd.device)
    dkdv_kernel[(len(order) * shares.parts * kv_heads,)](
        *(*inputs, *gradients, parts),
        *(ranges.first_q, ranges.last_q, *ranges.by_key, order, *words),
        *(*strides, *_strides(*gradients), ranges.queries, keys, *shares),
        *(tile.scale, *_threshold(tile.dropout)),
        KV_HEADS=kv_heads,
        ADD=add,
        SPLIT=not whole,
        **_constants(tile, launch),
    )
    if not whole:
        sum_parts_kernel[(triton.cdiv(keys, SUM_ROWS) * kv_heads,)](
            *(parts, *gradients, *ranges.by_key, *_strides(*gradients), keys, *shares),
            KV_HEADS=kv_heads,
            DIM=dim,
            BLOCK_M=launch.block_m,
            BLOCK_N=launch.block_n,
            ROWS=SUM_ROWS,
            ADD=add,
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
        "INTERPRETED": _interpreted(),
        "PRECISION": "tf32x3",  # of fp32 inputs alone: three tensor core products, near fp32
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
    }


def _strides(*tensors_thd: torch.Tensor) -> tuple[int, ...]:
    """Of each tensor the strides of tokens and of heads."""
    if any(t.stride(2) != 1 for t in tensors_thd):
        raise ValueError("backend triton: head dimensions must be contiguous")
    return tuple(stride for t in tensors_thd for stride in t.stride()[:2])


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _words(tile: Tile) -> tuple[torch.Tensor, torch.Tensor]:
    """Dropout's rows and words of keys; without dropout the kernels do not read them."""
    dropout, ranges, heads = tile.dropout, tile.ranges, tile.q_thd.shape[1]
    if dropout is None:
        return ranges.first_q, ranges.first_q
    rows = ranges.first_q.new_empty(2, heads, ranges.queries)
    words = ranges.first_q.new_empty(ranges.keys)
    blocks = triton.cdiv(max(ranges.queries, ranges.keys), WORDS_BLOCK)
    with torch.cuda.device_of(rows):
        words_kernel[(blocks, heads + 1)](
            *(dropout.query_index_t, dropout.key_index_t, rows, words),
            *(ranges.queries, ranges.keys, _signed(dropout.key), dropout.first_head),
            HEADS=heads,
            BLOCK=WORDS_BLOCK,
        )
    return rows, words


def _signed(word: int) -> int:
    """32 bits as int32, so that Triton sees one type."""
    return word - 2**32 if word >= 2**31 else word


def _threshold(dropout: Dropout | None) -> tuple[int, float]:
    """Threshold of the hashes, and the factor of what is kept."""
    return (0, 1.0) if dropout is None else (dropout.threshold, 1 / (1 - dropout.p))


IMPLEMENTATION = Implementation(
    unsupported_reason, forward, backward, forward_alone, backward_alone
)
