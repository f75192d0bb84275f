"""torch's flash attention on GPUs: all documents in one call where the mask allows it."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from emu3_kernels.attention_tile.dropout import Dropout
from emu3_kernels.attention_tile.merging import merge, nothing_yet, stand_in_out
from emu3_kernels.attention_tile.ranges import KeyRanges, Segment

aten = torch.ops.aten


class Call(NamedTuple):
    """Segments of one kind, none of which sees another's keys."""

    queries: slice
    keys: slice
    q_borders: torch.Tensor  # int32, on the device
    k_borders: torch.Tensor
    q_longest: int
    k_longest: int
    causal: bool


def refusal(q_thd: torch.Tensor, dropout: Dropout | None) -> str | None:
    """Why it cannot take a call."""
    if q_thd.device.type != "cuda":
        return f"runs on GPUs, not on {q_thd.device.type}"
    if q_thd.element_size() != 2:
        return f"does not take {q_thd.dtype}"
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
    for queries, keys, *borders, causal in calls(ranges):
        new_out_thd, new_lse_ht, *_ = aten._flash_attention_forward(
            *(q_thd[queries], k_thd[keys], v_thd[keys], *borders),
            *(0.0, causal, False),
            scale=scale,
        )
        # Its lse is +inf where a query sees nothing.
        new_lse_ht = new_lse_ht.masked_fill(new_lse_ht == torch.inf, -torch.inf)
        merge(out_thd[queries], lse_ht[:, queries], new_out_thd, new_lse_ht)
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
    no_rng = torch.zeros(2, dtype=torch.uint64, device=q_thd.device)
    for queries, keys, *borders, causal in calls(ranges):
        partial = aten._flash_attention_backward(
            *(dout_thd[queries], q_thd[queries], k_thd[keys], v_thd[keys]),
            *(stand_in_thd[queries], lse_ht[:, queries].contiguous(), *borders),
            *(0.0, causal, no_rng, torch.empty(0, device=q_thd.device)),
            scale=scale,
        )
        for total, part, rows in zip(gradients, partial, (queries, keys, keys), strict=True):
            total[rows] += part


def calls(ranges: KeyRanges) -> Iterator[Call]:
    """All segments, neighbours in one call as long as they are of one kind and share no key."""
    run: list[Segment] = []
    for segment in ranges.segments:
        if run and (segment.causal != run[-1].causal or segment.k_start < run[-1].k_end):
            yield _call(run, ranges.first_q.device)
            run = []
        run.append(segment)
    if run:
        yield _call(run, ranges.first_q.device)


def _call(run: list[Segment], device: torch.device) -> Call:
    """Gaps between segments become sequences too: of queries without keys and the reverse."""
    q, k = [run[0].q_start], [run[0].k_start]
    for segment in run:
        q += [segment.q_start, segment.q_start, segment.q_end]
        k += [k[-1], segment.k_start, segment.k_end]
    longest = lambda borders: max(end - start for start, end in pairwise(borders))
    tensor = lambda b: torch.tensor([x - b[0] for x in b], dtype=torch.int32, device=device)
    return Call(
        queries=slice(q[0], q[-1]),
        keys=slice(k[0], k[-1]),
        q_borders=tensor(q),
        k_borders=tensor(k),
        q_longest=longest(q),
        k_longest=longest(k),
        causal=run[0].causal,
    )
