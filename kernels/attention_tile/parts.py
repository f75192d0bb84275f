"""Makes backends of kernels that compute a part of the mask a call and cannot add to results."""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

import torch
from emu3_kernels.attention_tile.delta import stand_in_out
from emu3_kernels.attention_tile.implementation import Gradients, Implementation, Running
from emu3_kernels.attention_tile.ranges import KeyRanges
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


def by_parts(
    unsupported_reason: Callable[[Tile], str | None],
    parts_of: Callable[[KeyRanges], Iterable[P]],
    attend: Attend[P],
    differentiate: Differentiate[P],
) -> Implementation:
    """A backend that calls a kernel once for each part of the mask and adds up what it gives.

    Args:
        unsupported_reason: why the kernel cannot take a tile; None if it can.
        parts_of: the parts of a mask; together they are all of it, without overlap.
        attend: attention of one part.
        differentiate: gradients of one part, from the whole attention's lse and an out that has
            the whole attention's sum(dout * out).
    """

    def forward(tile: Tile, running: Running | None) -> Running:
        out_thd, lse_ht = running or tile.nothing_yet()
        q_thd, k_thd, v_thd = tile.inputs
        for part in parts_of(tile.ranges):
            queries, keys = part.queries, part.keys
            new = attend(q_thd[queries], k_thd[keys], v_thd[keys], part, tile.scale)
            merge(out_thd[queries], lse_ht[:, queries], *new)
        return out_thd, lse_ht

    def backward(tile: Tile, dout_thd: T, delta_ht: T, lse_ht: T, gradients: Gradients) -> None:
        q_thd, k_thd, v_thd = tile.inputs
        stand_in_thd = stand_in_out(dout_thd, delta_ht).to(q_thd.dtype)
        dout_thd = dout_thd.to(q_thd.dtype)
        for part in parts_of(tile.ranges):
            queries, keys = part.queries, part.keys
            partial = differentiate(
                *(dout_thd[queries], q_thd[queries], k_thd[keys], v_thd[keys]),
                *(stand_in_thd[queries], lse_ht[:, queries].contiguous(), part, tile.scale),
            )
            for total, share, rows in zip(gradients, partial, (queries, keys, keys), strict=True):
                accumulate(total[rows], share)

    return Implementation(unsupported_reason, forward, backward)
