"""Segments of a mask: as full rectangles and causal squares, and grouped for packed kernels."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple


class Piece(NamedTuple):
    """Some queries against some keys: all see all, or a causal square."""

    queries: slice
    keys: slice
    causal: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Queries and keys."""
        return self.queries.stop - self.queries.start, self.keys.stop - self.keys.start

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key that it sees."""
        queries, keys = self.shape
        return queries * (queries + 1) // 2 if self.causal else queries * keys


class Segment(NamedTuple):
    """Queries [q_start, q_end) see keys [k_start, k_end).

    Fully, or causally with the ends aligned: query q_end - 1 sees up to key k_end - 1, the query
    before it one key less, and so on.
    """

    q_start: int
    q_end: int
    k_start: int
    k_end: int
    causal: bool

    def pieces(self) -> Iterator[Piece]:
        """The segment as full rectangles and causal squares, for kernels that know only those."""
        if not self.causal:
            if self.q_start < self.q_end and self.k_start < self.k_end:
                yield Piece(slice(self.q_start, self.q_end), slice(self.k_start, self.k_end), False)
            return
        side = min(self.q_end - self.q_start, self.k_end - self.k_start)
        corner = self.k_end - side
        if side and self.k_start < corner:
            yield Piece(slice(self.q_start, self.q_end), slice(self.k_start, corner), False)
        if side:
            yield Piece(slice(self.q_end - side, self.q_end), slice(corner, self.k_end), True)


class PackedRun(NamedTuple):
    """Segments of one kind, causal or not, no two of which share a key: one call of a kernel.

    Attributes:
        q_borders: where sequences of queries begin, and the last one ends. Gaps between segments
            are sequences without keys, and the reverse.
        k_borders: of the keys that each sequence sees.
    """

    q_borders: list[int]
    k_borders: list[int]
    causal: bool

    @property
    def longest(self) -> tuple[int, int]:
        """Of the queries and of the keys of a sequence."""
        of = lambda borders: max(end - start for start, end in pairwise(borders))
        return of(self.q_borders), of(self.k_borders)


def packed_runs(segments: Sequence[Segment]) -> list[PackedRun]:
    """All segments; neighbours of one kind that share no key go into one run."""
    runs: list[PackedRun] = []
    for segment in segments:
        start_q, end_q, start_k, end_k, causal = segment
        if not runs or causal != runs[-1].causal or start_k < runs[-1].k_borders[-1]:
            runs.append(PackedRun([start_q], [start_k], causal))
        q, k, _ = runs[-1]
        q += [start_q, start_q, end_q]
        k += [k[-1], start_k, end_k]
    return runs
