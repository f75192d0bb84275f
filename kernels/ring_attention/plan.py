"""Which keys every rank of a ring must see, worked out before anything travels.

A rank's tokens fall into pieces: runs of consecutive tokens of one document. Two pieces of
different ranks never overlap, so a piece sees another one whole or not at all. Plans are made of
pieces: a few dozen where there are many thousands of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from emu3_kernels.attention_tile import KeyRanges


@dataclass(frozen=True)
class Hop:
    """Keys that come from one rank, and keys that go to another one at the same time.

    Attributes:
        source: whose keys come; this rank's own at the first hop.
        target: to whom keys go.
        ranges: which of the keys that come each query sees; None if nothing comes.
        keys_k: the keys that come, int64 indices into the whole sequence.
        sent_rows: the keys that go, int64 positions among this rank's own.
    """

    source: int
    target: int
    ranges: KeyRanges | None
    keys_k: torch.Tensor
    sent_rows: torch.Tensor


@dataclass(frozen=True)
class RingPlan:
    """All hops of one rank. Every rank walks as many hops, in step, also where nothing moves.

    Attributes:
        queries_t: this rank's tokens, int64 indices into the whole sequence, ascending.
        hops: at number h keys come from rank - h and go to rank + h.
    """

    rank: int
    queries_t: torch.Tensor
    hops: tuple[Hop, ...]

    @classmethod
    def build(
        cls,
        shares: Sequence[torch.Tensor],
        boundaries: torch.Tensor,
        rank: int,
        device: torch.device | str = "cpu",
    ) -> "RingPlan":
        """The plan of one rank; every rank can build that of any other.

        Args:
            shares: for each rank the tokens it holds, ascending int64 indices on the CPU. Together
                they are the whole sequence; they need not be equally many.
            boundaries: int [documents + 1], where documents begin and the last one ends.
                Attention is causal inside a document; tokens outside of all see nothing.
            device: of the tensors that attention will use.

        Raises:
            ValueError: tokens of a rank are not ascending.
        """
        boundaries = boundaries.cpu().long()
        pieces = [_Pieces.of(tokens, boundaries) for tokens in shares]
        size, mine = len(shares), pieces[rank]
        own = shares[rank]
        ranges = KeyRanges.of_segments(mine.own_segments(), len(own), len(own), device)
        queries_t = own.to(device)
        hops = [Hop(rank, rank, ranges, queries_t, own.new_empty(0).to(device))]
        for number in range(1, size):
            source, target = (rank - number) % size, (rank + number) % size
            segments, came = mine.sight_of(pieces[source])
            _, sent = pieces[target].sight_of(mine)
            ranges = None
            if len(came):
                ranges = KeyRanges.of_segments(segments, len(own), len(came), device)
            keys_k = shares[source][came].to(device)
            hops.append(Hop(source, target, ranges, keys_k, sent.to(device)))
        return cls(rank, queries_t, tuple(hops))

    @property
    def size(self) -> int:
        """Ranks of the ring."""
        return len(self.hops)

    @property
    def received_rows(self) -> int:
        """Keys of other ranks that travel to this one."""
        return sum(len(hop.keys_k) for hop in self.hops[1:])


@dataclass(frozen=True)
class _Pieces:
    """Runs of consecutive tokens of one document that a rank holds, in order; int64 [pieces].

    Attributes:
        first: index of the first token in the whole sequence.
        start: its position among the rank's own tokens.
        length: tokens.
        document: number of the document.
    """

    first: torch.Tensor
    start: torch.Tensor
    length: torch.Tensor
    document: torch.Tensor

    @classmethod
    def of(cls, tokens: torch.Tensor, boundaries: torch.Tensor) -> "_Pieces":
        steps = tokens.diff()
        if (steps <= 0).any():
            raise ValueError("the tokens of a rank must be ascending")
        jumps = (steps != 1).nonzero().flatten() + 1
        borders = torch.searchsorted(tokens, boundaries)
        cuts = torch.cat([jumps.new_tensor([0, len(tokens)]), jumps, borders]).unique()
        start, length = cuts[:-1], cuts.diff()
        first = tokens[start]
        document = torch.searchsorted(boundaries, first, right=True) - 1
        inside = (document >= 0) & (document < len(boundaries) - 1)
        return cls(*(field[inside] for field in (first, start, length, document)))

    def own_segments(self) -> torch.Tensor:
        """What these tokens see of each other, int64 [documents, 5] as KeyRanges takes them."""
        begins, ends = _runs(self.document)
        start, end = self.start[begins], (self.start + self.length)[ends]
        return torch.stack([start, end, start, end, torch.ones_like(start)], dim=1)

    def sight_of(self, keys: "_Pieces") -> tuple[torch.Tensor, torch.Tensor]:
        """What these tokens see of another rank's.

        Returns:
            int64 [segments, 5] as KeyRanges takes them, over the rows that are seen by any; and
            those rows, as positions among the other rank's tokens.
        """
        low = torch.searchsorted(keys.document, self.document)
        high = torch.searchsorted(keys.first, self.first)
        seeing = (low < high).nonzero().flatten()
        low, high = low[seeing], high[seeing]
        begins, ends = _runs(low, high)
        low, high = low[begins], high[begins]
        place, rows = keys._gathered(low, high)
        start = self.start[seeing[begins]]
        end = (self.start + self.length)[seeing[ends]]
        fully = torch.zeros_like(start)
        return torch.stack([start, end, place[low], place[high], fully], dim=1), rows

    def _gathered(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the pieces that lie in any of the ranges [low, high).

        Returns:
            how many kept tokens lie before each piece [pieces + 1], and the kept tokens' positions.
        """
        depth = torch.zeros(len(self.first) + 1, dtype=torch.int64)
        depth.index_add_(0, low, torch.ones_like(low)).index_add_(0, high, -torch.ones_like(high))
        kept = self.length * (depth.cumsum(0)[:-1] > 0)
        place = torch.cat([kept.new_zeros(1), kept.cumsum(0)])
        rows = torch.arange(int(place[-1])) + (self.start - place[:-1]).repeat_interleave(kept)
        return place, rows


def _runs(*fields: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First and last position of each run in which no field changes."""
    changes = torch.zeros(max(len(fields[0]) - 1, 0), dtype=torch.bool)
    for field in fields:
        changes |= field.diff() != 0
    inner = changes.nonzero().flatten()
    last = inner.new_tensor([len(fields[0]) - 1] if len(fields[0]) else [])
    begins = torch.cat([torch.zeros_like(last), inner + 1])
    return begins, torch.cat([inner, last])
