"""Best-fit-decreasing bin packing over a histogram of lengths.

Longest first, each piece goes into the fullest bin that still takes it. Pieces of one length
are interchangeable, and so are bins with one residual: a step handles whole groups of both, and its
cost depends on how many different lengths there are, not on how many pieces.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from emu3_megatron.data.packing.groups import Group, SizedGroups


@dataclass(frozen=True)
class Steps:
    """What to do with pieces in the order of histograms and falling lengths; int64 [steps] each.

    Step i puts the next `each[i]` pieces into bin `first[i]`, the next into the bin after it, and
    so on for `bins[i]` bins, all of which held `held[i]` pieces before.
    """

    first: np.ndarray
    bins: np.ndarray
    each: np.ndarray
    held: np.ndarray


@dataclass(frozen=True)
class Bins:
    """The bins that result; int64 [bins] each."""

    pieces: np.ndarray  # in each bin
    residual: np.ndarray  # tokens left free in each
    opened: list[int]  # how many bins there were after each histogram

    def __len__(self) -> int:
        return len(self.pieces)


def best_fit(
    histograms: np.ndarray | Sequence[np.ndarray], capacity: int, max_pieces: int
) -> tuple[Steps, Bins]:
    """Pack by best-fit-decreasing, one histogram after the other into the same bins.

    Args:
        histograms: how many pieces there are of each length, int64 [capacity + 1] each.
        capacity: tokens a bin takes.
        max_pieces: pieces a bin takes.
    """
    solver = _Solver(capacity, max_pieces)
    opened = []
    for counts in histograms:
        lengths = np.flatnonzero(counts)[::-1]
        for length, count in zip(lengths.tolist(), counts[lengths].tolist(), strict=True):
            solver.place(length, count)
        opened.append(solver.num_bins)
    return Steps(*columns(solver.steps, 4)), solver.bins(opened)


def assign(steps: Steps) -> tuple[np.ndarray, np.ndarray]:
    """Expand steps to single pieces.

    Returns:
        For each piece, by falling length: its bin, and its slot in that bin; int32 [pieces].
    """
    each = np.repeat(steps.each, steps.bins)
    bins = np.repeat(runs(steps.first, steps.bins), each)
    slots = runs(np.repeat(steps.held, steps.bins), each)
    return bins, slots


def lower_bound(counts: np.ndarray, capacity: int) -> int:
    """Martello and Toth's L2: no packing needs fewer bins, cap on pieces aside.

    Args:
        counts: as in `best_fit`.
    """
    lengths = np.arange(capacity + 1)
    number = np.concatenate([[0], np.cumsum(counts)])  # number[k]: pieces shorter than k
    tokens = np.concatenate([[0], np.cumsum(counts * lengths)])
    smallest = np.arange(capacity // 2 + 1)  # pieces shorter than this are left out
    half = capacity // 2 + 1
    big = number[-1] - number[half]  # longer than half a bin: one each
    middle = slice(half, None)
    space = (number[capacity + 1 - smallest] - number[half]) * capacity - (
        tokens[capacity + 1 - smallest] - tokens[middle.start]
    )
    small = tokens[half] - tokens[smallest]
    extra = -(-(small - space) // capacity)
    return int(big + max(0, extra.max()))


class _Solver:
    """Bins in groups of one residual; a group's state is the number of pieces in each bin."""

    def __init__(self, capacity: int, max_pieces: int):
        self.capacity = capacity
        self.max_pieces = max_pieces
        self.steps: list[tuple[int, int, int, int]] = []
        self.num_bins = 0
        self.open = SizedGroups()
        self.closed: list[tuple[int, Group]] = []

    def place(self, length: int, count: int) -> None:
        while count:
            residual, (first, bins, held) = self.open.take_fitting(length) or self._new_bins(
                length, count
            )
            each = min(residual // length, self.max_pieces - held)
            full = min(bins, count // each)
            self._fill(length, each, residual, (first, full, held))
            count -= full * each
            if count and full < bins:  # fewer than `each` are left: they share one bin
                self._fill(length, count, residual, (first + full, 1, held))
                full, count = full + 1, 0
            self.open.put(residual, (first + full, bins - full, held))

    def _new_bins(self, length: int, count: int) -> tuple[int, Group]:
        bins = -(-count // min(self.capacity // length, self.max_pieces))
        self.num_bins += bins
        return self.capacity, (self.num_bins - bins, bins, 0)

    def _fill(self, length: int, each: int, residual: int, group: Group) -> None:
        first, bins, held = group
        if bins:
            self.steps.append((first, bins, each, held))
            left, filled = residual - each * length, (first, bins, held + each)
            if left == 0 or held + each == self.max_pieces:
                self.closed.append((left, filled))
            else:
                self.open.put(left, filled)

    def bins(self, opened: list[int]) -> Bins:
        rows = sorted((*group, left) for left, group in [*self.closed, *self.open])
        _, bins, held, residual = columns(rows, 4)
        return Bins(np.repeat(held, bins), np.repeat(residual, bins), opened)


def columns(rows: Iterable[tuple[int, ...]], width: int) -> np.ndarray:
    """Rows as columns, int64 [width, rows]."""
    return np.array(list(rows), np.int64).reshape(-1, width).T


def runs(firsts: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """first, first + 1, … so many numbers for each run, int32."""
    before = np.cumsum(numbers) - numbers
    offsets = np.repeat((firsts - before).astype(np.int32), numbers)
    return offsets + np.arange(len(offsets), dtype=np.int32)
