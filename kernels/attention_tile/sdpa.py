"""torch's blockwise attention for CPUs, one call for each rectangle or square of the mask."""

import torch
from emu3_kernels.attention_tile import parts
from emu3_kernels.attention_tile.ranges import Piece
from emu3_kernels.attention_tile.tile import Tile

aten = torch.ops.aten


def refusal(tile: Tile) -> str | None:
    """Why it cannot take a call."""
    if tile.q_thd.device.type != "cpu":
        return f"runs on CPUs, not on {tile.q_thd.device.type}"
    return None if tile.dropout is None else "cannot drop by global positions"


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
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
        *map(batch, (q, k, v)), is_causal=piece.causal, scale=scale
    )
    return unbatch(out), lse[0]


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
        *map(batch, (dout, q, k, v, out)), lse[None], 0.0, piece.causal, scale=scale
    )
    return unbatch(dq), unbatch(dk), unbatch(dv)


def batch(t_thd: torch.Tensor) -> torch.Tensor:
    """[t, h, d] to torch's [1, h, t, d]."""
    return t_thd.transpose(0, 1)[None]


def unbatch(t_bhtd: torch.Tensor) -> torch.Tensor:
    """And back."""
    return t_bhtd[0].transpose(0, 1)
