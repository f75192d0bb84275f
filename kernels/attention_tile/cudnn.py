"""cuDNN's attention through torch, one call for each rectangle or square of the mask.

torch builds a cuDNN graph for each new shape and keeps it, so this is for masks of few shapes, such
as long documents in blocks of one size.
"""

from functools import partial

import torch
from emu3_kernels.attention_tile import reference
from emu3_kernels.attention_tile.delta import attention_delta
from emu3_kernels.attention_tile.implementation import unsupported_by_gpu_kernels
from emu3_kernels.attention_tile.parts import by_parts
from emu3_kernels.attention_tile.ranges import KeyRanges
from emu3_kernels.attention_tile.segments import Piece
from emu3_kernels.attention_tile.tile import Tile, from_bhtd, to_bhtd

aten = torch.ops.aten


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, piece: Piece, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    if len(k) == 1:
        return reference.forward(_of_one_key(q, k, v, scale), None)
    out, lse, *_ = aten._scaled_dot_product_cudnn_attention(
        *map(to_bhtd, (q, k, v)), None, True, 0.0, piece.causal, False, scale=scale
    )
    return from_bhtd(out), lse.reshape(q.shape[1], q.shape[0])


def _differentiate(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    piece: Piece,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if len(k) == 1:
        dq, dk, dv = (torch.zeros_like(t, dtype=lse.dtype) for t in (q, k, v))
        tile = _of_one_key(q, k, v, scale)
        reference.backward(tile, dout, attention_delta(dout, out), lse, (dq, dk, dv))
        return dq, dk, dv
    no_rng = torch.zeros(2, dtype=torch.int64, device=q.device)
    dq, dk, dv = aten._scaled_dot_product_cudnn_attention_backward(
        *map(to_bhtd, (dout, q, k, v, out)),
        *(lse[None, :, :, None], *no_rng, None, None, None, len(q), len(k)),
        *(0.0, piece.causal),
        scale=scale,
    )
    return from_bhtd(dq), from_bhtd(dk), from_bhtd(dv)


def _of_one_key(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Tile:
    """cuDNN refuses a single key, so plain torch takes it."""
    ranges = KeyRanges.of_segments([[0, len(q), 0, 1, 0]], len(q), 1, q.device)
    return Tile(q, k, v, ranges, scale)


IMPLEMENTATION = by_parts(
    partial(unsupported_by_gpu_kernels, largest_dim=128), KeyRanges.pieces, _attend, _differentiate
)
