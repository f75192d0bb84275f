"""cuDNN's attention through torch, one call for each rectangle or square of the mask.

torch builds a cuDNN graph for each new shape and keeps it, so this is for masks of few shapes, such
as long documents dealt out in blocks.
"""

import torch
from emu3_kernels.attention_tile import parts, reference
from emu3_kernels.attention_tile.delta import attention_delta
from emu3_kernels.attention_tile.ranges import KeyRanges, Piece
from emu3_kernels.attention_tile.sdpa import batch, unbatch
from emu3_kernels.attention_tile.tile import Tile

aten = torch.ops.aten


def refusal(tile: Tile) -> str | None:
    """Why it cannot take a call."""
    return parts.half_on_gpu(tile, largest_dim=128)


def forward(
    tile: Tile, running: tuple[torch.Tensor, torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `attention_tile`."""
    return parts.forward(tile, running, tile.ranges.pieces(), _attend)


def backward(
    tile: Tile,
    dout_thd: torch.Tensor,
    delta_ht: torch.Tensor,
    lse_ht: torch.Tensor,
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """See `attention_tile_backward`."""
    pieces = tile.ranges.pieces()
    parts.backward(tile, dout_thd, delta_ht, lse_ht, gradients, pieces, _differentiate)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, piece: Piece, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    if len(k) == 1:
        return reference.forward(_of_one_key(q, k, v, scale), None)
    out, lse, *_ = aten._scaled_dot_product_cudnn_attention(
        *map(batch, (q, k, v)), None, True, 0.0, piece.causal, False, scale=scale
    )
    return unbatch(out), lse.reshape(q.shape[1], q.shape[0])


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
        gradients = tuple(torch.zeros_like(t, dtype=lse.dtype) for t in (q, k, v))
        tile = _of_one_key(q, k, v, scale)
        reference.backward(tile, dout, attention_delta(dout, out), lse, gradients)
        return gradients
    no_rng = torch.zeros(2, dtype=torch.int64, device=q.device)
    dq, dk, dv = aten._scaled_dot_product_cudnn_attention_backward(
        *map(batch, (dout, q, k, v, out)),
        *(lse[None, :, :, None], *no_rng, None, None, None, len(q), len(k)),
        *(0.0, piece.causal),
        scale=scale,
    )
    return unbatch(dq), unbatch(dk), unbatch(dv)


def _of_one_key(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Tile:
    """cuDNN refuses a single key, so plain torch takes it."""
    ranges = KeyRanges.of_segments([[0, len(q), 0, 1, 0]], len(q), 1, q.device)
    return Tile(q, k, v, ranges, scale)
