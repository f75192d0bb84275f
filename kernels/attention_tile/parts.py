"""Tiles by kernels that know neither a running result nor the whole mask: a call for each part."""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

import torch
from emu3_kernels.attention_tile.delta import stand_in_out
from emu3_kernels.attention_tile.tile import Tile
from emu3_kernels.passes import accumulate, merge


class Part(Protocol):
    """Some queries against some keys."""

    @property
    def queries(self) -> slice: ...

    @property
    def keys(self) -> slice: ...


T = torch.Tensor
P = TypeVar("P", bound=Part)
# Of a part's q, k, v: out [t, h, d] and lse [h, t]; the scale comes last.
Attend = Callable[[T, T, T, P, float], tuple[T, T]]
# Of a part's dout, q, k, v, out and lse: dq, dk, dv.
Differentiate = Callable[[T, T, T, T, T, T, P, float], tuple[T, T, T]]


def forward(
    tile: Tile,
    running: tuple[torch.Tensor, torch.Tensor] | None,
    parts: Iterable[P],
    attend: Attend[P],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend part by part, and merge."""
    out_thd, lse_ht = running or tile.nothing_yet()
    q_thd, k_thd, v_thd = tile.inputs
    for part in parts:
        queries, keys = part.queries, part.keys
        new = attend(q_thd[queries], k_thd[keys], v_thd[keys], part, tile.scale)
        merge(out_thd[queries], lse_ht[:, queries], *new)
    return out_thd, lse_ht


def backward(
    tile: Tile,
    dout_thd: torch.Tensor,
    delta_ht: torch.Tensor,
    lse_ht: torch.Tensor,
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    parts: Iterable[P],
    differentiate: Differentiate[P],
) -> None:
    """Differentiate part by part, each as a share of the whole, and add up."""
    q_thd, k_thd, v_thd = tile.inputs
    stand_in_thd = stand_in_out(dout_thd, delta_ht).to(q_thd.dtype)
    dout_thd = dout_thd.to(q_thd.dtype)
    for part in parts:
        queries, keys = part.queries, part.keys
        partial = differentiate(
            *(dout_thd[queries], q_thd[queries], k_thd[keys], v_thd[keys]),
            *(stand_in_thd[queries], lse_ht[:, queries].contiguous(), part, tile.scale),
        )
        for total, share, rows in zip(gradients, partial, (queries, keys, keys), strict=True):
            accumulate(total[rows], share)


def half_on_gpu(tile: Tile, largest_dim: int) -> str | None:
    """Why kernels for GPUs and 16-bit values, without our dropout, cannot take a tile."""
    dim = tile.q_thd.shape[2]
    if not tile.q_thd.is_cuda:
        return f"runs on GPUs, not on {tile.q_thd.device.type}"
    if tile.q_thd.element_size() != 2:
        return f"does not take {tile.q_thd.dtype}"
    if dim % 8 or dim > largest_dim:
        return f"head dimension {dim} is no multiple of 8 up to {largest_dim}"
    return None if tile.dropout is None else "cannot drop by global positions"
