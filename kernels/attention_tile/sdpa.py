"""torch's blockwise attention for CPUs, one call for each rectangle or square of the mask."""

import torch
from emu3_kernels.attention_tile.implementation import dropout_unsupported
from emu3_kernels.attention_tile.parts import by_parts
from emu3_kernels.attention_tile.ranges import KeyRanges
from emu3_kernels.attention_tile.segments import Piece
from emu3_kernels.attention_tile.tile import Tile, from_bhtd, to_bhtd

aten = torch.ops.aten


def _unsupported_reason(tile: Tile) -> str | None:
    if tile.q_thd.device.type != "cpu":
        return f"runs on CPUs, not on {tile.q_thd.device.type}"
    return dropout_unsupported(tile)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, piece: Piece, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
        *map(to_bhtd, (q, k, v)), is_causal=piece.causal, scale=scale
    )
    return from_bhtd(out), lse[0]


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
    dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *map(to_bhtd, (dout, q, k, v, out)), lse[None], 0.0, piece.causal, scale=scale
    )
    return from_bhtd(dq), from_bhtd(dk), from_bhtd(dv)


IMPLEMENTATION = by_parts(_unsupported_reason, KeyRanges.pieces, _attend, _differentiate)
