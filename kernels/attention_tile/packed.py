"""Segments of a mask grouped into calls of a packed ("varlen") kernel."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from emu3_kernels.attention_tile.ranges import KeyRanges


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
    """A call for each packed run; its borders came to the device with the ranges."""
    sizes = [len(run.q_borders) for run in ranges.packed for _ in range(2)]
    borders = iter(ranges.borders.split(sizes))
    for run in ranges.packed:
        yield Call(
            slice(run.q_borders[0], run.q_borders[-1]),
            slice(run.k_borders[0], run.k_borders[-1]),
            next(borders),
            next(borders),
            *run.longest,
            run.causal,
        )
