"""Best-fit-decreasing bin packing over a histogram of lengths.

Longest first, each piece goes into the bin with the least room that still takes it. Pieces of one
length are alike, and so are bins with one residual: a step handles whole groups of both, and its
cost depends on how many different lengths there are, not on how many pieces.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Steps:
    """What to do with pieces sorted by falling length; int64 [steps] each.

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

    def __len__(self) -> int:
        return len(self.pieces)


def best_fit(counts: np.ndarray, capacity: int, max_pieces: int) -> tuple[Steps, Bins]:
    """Pack by best-fit-decreasing.

    Args:
        counts: how many pieces there are of each length, int64 [capacity + 1].
        capacity: tokens a bin takes.
        max_pieces: pieces a bin takes.
    """
    solver = _Solver(capacity, max_pieces)
    lengths = np.flatnonzero(counts)[::-1]
    for length, count in zip(lengths.tolist(), counts[lengths].tolist(), strict=True):
        solver.place(length, count)
    return Steps(*_columns(solver.steps, 4)), solver.bins()


def assign(steps: Steps) -> tuple[np.ndarray, np.ndarray]:
    """Expand steps to single pieces.

    Returns:
        For each piece, by falling length: its bin, and its slot in that bin; int32 [pieces].
    """
    visits = int(steps.bins.sum())
    visited = _runs(steps.first, steps.bins, visits)
    each = np.repeat(steps.each, steps.bins)
    pieces = int(each.sum())
    bins = np.repeat(visited, each)
    slots = _runs(np.repeat(steps.held, steps.bins), each, pieces)
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
    room = (number[capacity + 1 - smallest] - number[half]) * capacity - (
        tokens[capacity + 1 - smallest] - tokens[middle.start]
    )
    small = tokens[half] - tokens[smallest]
    extra = -(-(small - room) // capacity)
    return int(big + max(0, extra.max()))


class _Solver:
    def __init__(self, capacity: int, max_pieces: int):
        self.capacity = capacity
        self.max_pieces = max_pieces
        self.steps: list[tuple[int, int, int, int]] = []
        self.num_bins = 0
        self.residuals: list[int] = []  # of open bins, rising
        self.open: dict[int, list[tuple[int, int, int]]] = {}  # residual: (first, bins, held)
        self.closed: list[tuple[int, int, int, int]] = []  # first, bins, held, residual

    def place(self, length: int, count: int) -> None:
        while count:
            residual, (first, bins, held) = self._take(length, count)
            each = min(residual // length, self.max_pieces - held)
            full = min(bins, count // each)
            self._fill(length, each, residual, (first, full, held))
            count -= full * each
            if count and full < bins:  # fewer than `each` are left: they share one bin
                self._fill(length, count, residual, (first + full, 1, held))
                full, count = full + 1, 0
            self._put(residual, (first + full, bins - full, held))

    def _fill(self, length: int, each: int, residual: int, group: tuple[int, int, int]) -> None:
        first, bins, held = group
        if bins:
            self.steps.append((first, bins, each, held))
            self._put(residual - each * length, (first, bins, held + each))

    def _take(self, length: int, count: int) -> tuple[int, tuple[int, int, int]]:
        """The bins with the least room for `length`; new ones when there are none."""
        at = bisect_left(self.residuals, length)
        if at == len(self.residuals):
            bins = -(-count // min(self.capacity // length, self.max_pieces))
            self.num_bins += bins
            return self.capacity, (self.num_bins - bins, bins, 0)
        residual = self.residuals[at]
        groups = self.open[residual]
        group = groups.pop()
        if not groups:
            del self.open[residual], self.residuals[at]
        return residual, group

    def _put(self, residual: int, group: tuple[int, int, int]) -> None:
        first, bins, held = group
        if bins == 0:
            return
        if residual == 0 or held == self.max_pieces:
            self.closed.append((first, bins, held, residual))
        elif residual in self.open:
            self.open[residual].append(group)
        else:
            self.open[residual] = [group]
            insort(self.residuals, residual)

    def bins(self) -> Bins:
        still_open = [(*group, room) for room, groups in self.open.items() for group in groups]
        groups = sorted(self.closed + still_open)
        _, bins, held, residual = _columns(groups, 4)
        return Bins(np.repeat(held, bins), np.repeat(residual, bins))


def _columns(rows: Iterable[tuple[int, ...]], width: int) -> np.ndarray:
    return np.array(list(rows), np.int64).reshape(-1, width).T


def _runs(starts: np.ndarray, lengths: np.ndarray, total: int) -> np.ndarray:
    """start, start + 1, … for each run, int32 [total]."""
    before = np.cumsum(lengths) - lengths
    return np.repeat((starts - before).astype(np.int32), lengths) + np.arange(total, dtype=np.int32)
