"""The mask of an attention tile: for each query the range of keys that it sees."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, chain
from typing import Any

import torch
from emu3_kernels.attention_tile.segments import PackedRun, Piece, Segment, packed_runs
from emu3_kernels.movable import Movable, Move


@dataclass(frozen=True, eq=False)
class KeyRanges(Movable):
    """Query i sees exactly the keys [first_q[i], last_q[i]); both never decrease.

    This is the mask of any pair of ranks that hold their tokens in ascending global order: a query
    sees the keys from its document's beginning up to itself, and these are neighbours.

    Attributes:
        segments: the same as numbers of Python's, for kernels that are called once for each.
        first_q: int32 [queries].
        last_q: int32 [queries]; at or below first_q where nothing is visible.
        keys: number of keys.
        borders: int32, of each packed run its borders of queries, then of keys, counted from the
            first: kernels want them on the device.
    """

    segments: tuple[Segment, ...]
    first_q: torch.Tensor
    last_q: torch.Tensor
    keys: int
    borders: torch.Tensor
    _orders: dict[tuple[int, bool], torch.Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of_segments(
        cls,
        segments: Sequence[Sequence[int]] | Any,
        queries: int,
        keys: int,
        device: torch.device | str = "cpu",
    ) -> "KeyRanges":
        """Ranges from segments; a query in no segment sees nothing.

        Args:
            segments: int [m, 5], rows of q_start, q_end, k_start, k_end, causal; queries ascend
                from row to row without overlap, and the ranges they see never move back.
            queries: number of queries.
            keys: number of keys.
            device: where the ranges are moved once they are made on the CPU.

        Raises:
            ValueError: segments that are no such ranges.
        """
        rows_m5 = torch.as_tensor(segments, dtype=torch.int64).reshape(-1, 5)
        first_q, last_q = _ranges(rows_m5, queries, keys)
        rows = tuple(Segment(a, b, c, d, bool(causal)) for a, b, c, d, causal in rows_m5.tolist())
        return cls(rows, first_q, last_q, keys, _borders(rows)).to(device)

    def map_tensors(self, move: Move) -> "KeyRanges":
        first_q, last_q, borders = map(move, (self.first_q, self.last_q, self.borders))
        return KeyRanges(self.segments, first_q, last_q, self.keys, borders)

    @cached_property
    def packed(self) -> list[PackedRun]:
        """The segments for kernels that take many at once."""
        return packed_runs(self.segments)

    @property
    def queries(self) -> int:
        """Number of queries."""
        return self.first_q.shape[0]

    @cached_property
    def by_key(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The same by key: int32 [keys] each, key j is seen by queries [first[j], last[j])."""
        key_k = torch.arange(self.keys, dtype=torch.int32, device=self.first_q.device)
        first_k = torch.searchsorted(self.last_q, key_k, right=True, out_int32=True)
        last_k = torch.searchsorted(self.first_q, key_k, right=True, out_int32=True)
        return first_k, last_k

    @cached_property
    def pairs(self) -> int:
        """Pairs of a query and a key that it sees."""
        return sum(piece.pairs for piece in self.pieces())

    @cached_property
    def most_queries(self) -> int:
        """How many queries see the key that most see; at most twice as many as really do."""
        changes: dict[int, int] = defaultdict(int)
        for piece in self.pieces():
            queries, _ = piece.shape
            changes[piece.keys.start] += queries
            changes[piece.keys.stop] -= queries
        return max(accumulate(change for _, change in sorted(changes.items())), default=0)

    def heaviest_first(self, block: int, by_key: bool = False) -> torch.Tensor:
        """Numbers of blocks of queries, those that see the most keys first: int32.

        The last blocks to start are then small, and multiprocessors finish together.

        Args:
            by_key: blocks of keys, those that are seen by the most queries first.
        """
        if (block, by_key) not in self._orders:
            first, last = self.by_key if by_key else (self.first_q, self.last_q)
            ends = torch.arange(block, first.shape[0] + block, block, device=first.device)
            ends.clamp_(max=first.shape[0])
            work = last[ends - 1] - first[::block]
            order = work.argsort(descending=True, stable=True)
            self._orders[block, by_key] = order.int()
        return self._orders[block, by_key]

    def pieces(self) -> Iterator[Piece]:
        """All segments as full rectangles and causal squares."""
        for segment in self.segments:
            yield from segment.pieces()


def _borders(segments: Sequence[Segment]) -> torch.Tensor:
    borders = [
        [border - part[0] for border in part]
        for run in packed_runs(segments)
        for part in (run.q_borders, run.k_borders)
    ]
    return torch.tensor([*chain.from_iterable(borders)], dtype=torch.int32)


def _ranges(rows_m5: torch.Tensor, queries: int, keys: int) -> tuple[torch.Tensor, torch.Tensor]:
    """first_q and last_q, int32 on the CPU."""
    q_start, q_end, k_start, k_end, _ = rows_m5.unbind(1)
    if (q_end < q_start).any() or (k_end < k_start).any() or (rows_m5 < 0).any():
        raise ValueError("segments: a range that ends before it begins, or begins before 0")
    if (q_start[1:] < q_end[:-1]).any() or (q_end > queries).any() or (k_end > keys).any():
        raise ValueError(f"segments: out of order, or past {queries} queries x {keys} keys")
    first_q, last_q = _spread(rows_m5[q_end > q_start], queries)
    if (first_q.diff() < 0).any() or (last_q.diff() < 0).any():
        raise ValueError("segments: the keys that queries see must never move back")
    return first_q, last_q


def _spread(rows_m5: torch.Tensor, queries: int) -> tuple[torch.Tensor, torch.Tensor]:
    """first_q and last_q of segments that all hold queries.

    Before each segment and behind the last one there may be queries that see nothing; for them
    both are where the keys of the segment before end.
    """
    q_start, q_end, k_start, k_end, causal = rows_m5.int().unbind(1)
    causal = (causal != 0).int()
    zero, whole = q_end.new_zeros(1), q_end.new_tensor([queries])
    ended = torch.cat([zero, k_end])
    gaps = torch.cat([q_start, whole]) - torch.cat([zero, q_end])
    lengths = _by_turns(gaps, q_end - q_start)
    spread = lambda gap, segment: _by_turns(gap, segment).repeat_interleave(lengths)
    first_q = spread(ended, k_start)
    last_q = spread(ended, k_end - causal * (q_end - 1))  # and one more for each causal query
    last_q.addcmul_(spread(torch.zeros_like(ended), causal), torch.arange(queries).int())
    return first_q, torch.maximum(last_q, first_q)


def _by_turns(gaps: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Interleaved: a gap, a segment, a gap ... and the last gap."""
    both = gaps.new_empty(len(gaps) + len(segments))
    both[::2], both[1::2] = gaps, segments
    return both
