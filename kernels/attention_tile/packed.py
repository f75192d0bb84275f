"""Segments of a mask grouped into calls of a packed ("varlen") kernel."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from emu3_kernels.attention_tile.ranges import KeyRanges, Segment


class Call(NamedTuple):
    """Segments of one kind, causal or not, no two of which share a key."""

    queries: slice
    keys: slice
    q_borders: torch.Tensor  # int32, on the device
    k_borders: torch.Tensor
    q_longest: int
    k_longest: int
    causal: bool

    @property
    def bounds(self) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """Borders and longest sequences, in the order of flash attention's arguments."""
        return self.q_borders, self.k_borders, self.q_longest, self.k_longest


def nothing_is_negative(lse_ht: torch.Tensor) -> torch.Tensor:
    """-inf in the place of the +inf that flash attention gives where a query sees nothing."""
    return lse_ht.masked_fill(lse_ht == torch.inf, -torch.inf)


def calls(ranges: KeyRanges) -> Iterator[Call]:
    """All segments; neighbours of one kind that share no key go into one call."""
    run: list[Segment] = []
    for segment in ranges.segments:
        if run and (segment.causal != run[-1].causal or segment.k_start < run[-1].k_end):
            yield _call(run, ranges.first_q.device)
            run = []
        run.append(segment)
    if run:
        yield _call(run, ranges.first_q.device)


def _call(run: list[Segment], device: torch.device) -> Call:
    """A call; gaps between segments become sequences of queries without keys, and the reverse."""
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
