"""torch's blockwise attention for CPUs, one call for each rectangle or square of the mask."""

import torch
from emu3_kernels.attention_tile.dropout import Dropout
from emu3_kernels.attention_tile.merging import merge, nothing_yet, stand_in_out
from emu3_kernels.attention_tile.ranges import KeyRanges

aten = torch.ops.aten


def refusal(q_thd: torch.Tensor, dropout: Dropout | None) -> str | None:
    """Why it cannot take a call."""
    if q_thd.device.type != "cpu":
        return f"runs on CPUs, not on {q_thd.device.type}"
    return None if dropout is None else "cannot drop by global positions"


def forward(
    q_thd: torch.Tensor,
    k_thd: torch.Tensor,
    v_thd: torch.Tensor,
    ranges: KeyRanges,
    scale: float,
    running: tuple[torch.Tensor, torch.Tensor] | None,
    dropout: Dropout | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `attention_tile`."""
    out_thd, lse_ht = running or nothing_yet(q_thd)
    for queries, keys, causal in ranges.pieces():
        out_bhqd, lse_bhq = aten._scaled_dot_product_flash_attention_for_cpu(
            _batch(q_thd[queries]),
            _batch(k_thd[keys]),
            _batch(v_thd[keys]),
            is_causal=causal,
            scale=scale,
        )
        merge(out_thd[queries], lse_ht[:, queries], _unbatch(out_bhqd), lse_bhq[0])
    return out_thd, lse_ht


def backward(
    dout_thd: torch.Tensor,
    q_thd: torch.Tensor,
    k_thd: torch.Tensor,
    v_thd: torch.Tensor,
    delta_ht: torch.Tensor,
    lse_ht: torch.Tensor,
    ranges: KeyRanges,
    scale: float,
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    dropout: Dropout | None,
) -> None:
    """See `attention_tile_backward`."""
    stand_in_thd = stand_in_out(dout_thd, delta_ht).to(q_thd.dtype)
    dout_thd = dout_thd.to(q_thd.dtype)
    for queries, keys, causal in ranges.pieces():
        partial = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            _batch(dout_thd[queries]),
            _batch(q_thd[queries]),
            _batch(k_thd[keys]),
            _batch(v_thd[keys]),
            _batch(stand_in_thd[queries]),
            lse_ht[None, :, queries],
            0.0,
            causal,
            scale=scale,
        )
        for total, part, rows in zip(gradients, partial, (queries, keys, keys), strict=True):
            total[rows] += _unbatch(part)


def _batch(t_thd: torch.Tensor) -> torch.Tensor:
    return t_thd.transpose(0, 1)[None]


def _unbatch(t_bhtd: torch.Tensor) -> torch.Tensor:
    return t_bhtd[0].transpose(0, 1)
