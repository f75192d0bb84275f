"""torch's own flash attention on GPUs."""

import torch
from emu3_kernels.attention_tile import parts
from emu3_kernels.attention_tile.packed import Call, calls, nothing_is_negative
from emu3_kernels.attention_tile.tile import Tile

aten = torch.ops.aten


def refusal(tile: Tile) -> str | None:
    """Why it cannot take a call."""
    return parts.half_on_gpu(tile, largest_dim=256)


def forward(
    tile: Tile, running: tuple[torch.Tensor, torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `attention_tile`."""
    return parts.forward(tile, running, calls(tile.ranges), _attend)


def backward(
    tile: Tile,
    dout_thd: torch.Tensor,
    delta_ht: torch.Tensor,
    lse_ht: torch.Tensor,
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """See `attention_tile_backward`."""
    segments = calls(tile.ranges)
    parts.backward(tile, dout_thd, delta_ht, lse_ht, gradients, segments, _differentiate)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: Call, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse, *_ = aten._flash_attention_forward(
        *(q, k, v, *call.bounds), 0.0, call.causal, False, scale=scale
    )
    return out, nothing_is_negative(lse)


def _differentiate(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    call: Call,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    no_rng = torch.empty(2, dtype=torch.uint64, device=q.device)
    return aten._flash_attention_backward(
        *(dout, q, k, v, out, lse, *call.bounds),
        *(0.0, call.causal, no_rng, torch.empty(0, device=q.device)),
        scale=scale,
    )
