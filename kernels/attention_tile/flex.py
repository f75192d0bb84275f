"""torch's FlexAttention on GPUs, its blocks computed from the ranges of keys."""

from collections.abc import Callable
from functools import cache

import torch
from emu3_kernels.attention_tile.implementation import (
    Gradients,
    Implementation,
    Running,
    dropout_unsupported,
)
from emu3_kernels.attention_tile.ranges import KeyRanges
from emu3_kernels.attention_tile.tile import Tile, from_bhtd, to_bhtd
from emu3_kernels.passes import accumulate, merge
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

BLOCK = 128


def unsupported_reason(tile: Tile) -> str | None:
    """See `Implementation`."""
    if not tile.q_thd.is_cuda:
        return f"runs on GPUs, not on {tile.q_thd.device.type}"
    if tile.q_thd.dtype == torch.float64:
        return f"does not take {tile.q_thd.dtype}"
    return dropout_unsupported(tile)


def forward(tile: Tile, running: Running | None) -> Running:
    """See `attention_tile`."""
    out_thd, lse_ht = running or tile.nothing_yet()
    if tile.ranges.segments:
        merge(out_thd, lse_ht, *_attend(tile.inputs, block_mask(tile.ranges), tile.scale))
    return out_thd, lse_ht


def backward(
    tile: Tile,
    dout_thd: torch.Tensor,
    delta_ht: torch.Tensor,
    lse_ht: torch.Tensor,
    gradients: Gradients,
) -> None:
    """See `attention_tile_backward`.

    FlexAttention differentiates its own result only, so this computes the tile again. With
    share = e^(own lse - lse) the whole attention's probabilities are share x own: dout is
    multiplied by the share, and a gradient of the own lse replaces the own delta by the whole's.
    """
    if not tile.ranges.segments:
        return
    leaves = tuple(t.detach().requires_grad_() for t in tile.inputs)
    with torch.enable_grad():
        own_out_thd, own_lse_ht = _attend(leaves, block_mask(tile.ranges), tile.scale)
    with torch.no_grad():
        share_ht = (own_lse_ht - lse_ht).exp().nan_to_num_(0.0)  # -inf both: nothing is visible
        own_dout_thd = dout_thd * share_ht.T[:, :, None]
        own_delta_ht = torch.einsum("thd,thd->ht", own_dout_thd, own_out_thd.to(share_ht.dtype))
    outer = (own_dout_thd.to(own_out_thd.dtype), own_delta_ht - share_ht * delta_ht)
    partial = torch.autograd.grad((own_out_thd, own_lse_ht), leaves, outer)
    for total, part in zip(gradients, partial, strict=True):
        accumulate(total, part)


def block_mask(ranges: KeyRanges) -> BlockMask:
    """The mask: which blocks are computed, and which of them need no masking."""
    first_q, last_q = ranges.first_q.long(), ranges.last_q.long()
    starts = torch.arange(0, ranges.queries, BLOCK, device=first_q.device)
    ends = (starts + BLOCK).clamp_(max=ranges.queries) - 1
    column = torch.arange(-(-ranges.keys // BLOCK), device=first_q.device)[None]
    between = lambda low, high: (column >= low[:, None]) & (column < high[:, None])
    low, high = first_q[starts], last_q[ends]
    seen = between(low // BLOCK, torch.where(low < high, -(-high // BLOCK), 0))
    full = between(-(-first_q[ends] // BLOCK), last_q[starts] // BLOCK)
    visible = lambda b, h, query, key: (key >= first_q[query]) & (key < last_q[query])
    return BlockMask.from_kv_blocks(
        *_listed(seen & ~full),
        *_listed(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(ranges.queries, ranges.keys),
    )


def _listed(blocks_rc: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many blocks each row has, and all columns, those of the row's blocks first."""
    count_r = blocks_rc.sum(1, dtype=torch.int32)
    columns_rc = blocks_rc.int().argsort(dim=1, descending=True, stable=True).int()
    return count_r[None, None], columns_rc[None, None]


def _attend(inputs_thd: tuple[torch.Tensor, ...], mask: BlockMask, scale: float) -> Running:
    """out [t, h, d] and lse [h, t] of this tile alone."""
    q, k, v = map(to_bhtd, inputs_thd)
    out, aux = _compiled()(
        q, k, v, block_mask=mask, scale=scale, enable_gqa=True, return_aux=AuxRequest(lse=True)
    )
    return from_bhtd(out), aux.lse[0]


@cache
def _compiled() -> Callable:
    return torch.compile(flex_attention)


IMPLEMENTATION = Implementation(unsupported_reason, forward, backward)
