"""What one rank's tokens see of another rank's, by searches among runs of tokens.

A rank's tokens fall into runs of consecutive tokens of one document. Two runs of different ranks
never overlap, so one sees the other whole or not at all, and a pack of many thousands of tokens is
a few dozen runs.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenRuns:
    """Runs of consecutive tokens of one document that a rank holds, in order; int64 [runs].

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
    def of(cls, tokens: torch.Tensor, boundaries: torch.Tensor) -> "TokenRuns":
        """The runs of a rank's tokens; tokens outside of all documents are in none.

        Raises:
            ValueError: the tokens are not ascending.
        """
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
        begins, ends = _equal_neighbours(self.document)
        start, end = self.start[begins], (self.start + self.length)[ends]
        return torch.stack([start, end, start, end, torch.ones_like(start)], dim=1)

    def segments_over(self, keys: "TokenRuns") -> tuple[torch.Tensor, torch.Tensor]:
        """What these tokens see of another rank's.

        Returns:
            int64 [segments, 5] as KeyRanges takes them, over those of the other rank's tokens that
            any of these see; and the positions of those among all of the other rank's.
        """
        low = torch.searchsorted(keys.document, self.document)
        high = torch.searchsorted(keys.first, self.first)
        seeing = (low < high).nonzero().flatten()
        low, high = low[seeing], high[seeing]
        begins, ends = _equal_neighbours(low, high)
        low, high = low[begins], high[begins]
        place, rows = keys._select(low, high)
        start = self.start[seeing[begins]]
        end = (self.start + self.length)[seeing[ends]]
        fully = torch.zeros_like(start)
        return torch.stack([start, end, place[low], place[high], fully], dim=1), rows

    def _select(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the runs that lie in any of the ranges [low, high).

        Returns:
            how many kept tokens lie before each run [runs + 1], and the kept tokens' positions.
        """
        depth = torch.zeros(len(self.first) + 1, dtype=torch.int64)
        depth.index_add_(0, low, torch.ones_like(low)).index_add_(0, high, -torch.ones_like(high))
        kept = self.length * (depth.cumsum(0)[:-1] > 0)
        place = torch.cat([kept.new_zeros(1), kept.cumsum(0)])
        rows = torch.arange(int(place[-1])) + (self.start - place[:-1]).repeat_interleave(kept)
        return place, rows


def _equal_neighbours(*fields: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First and last position of each stretch in which no field changes."""
    changes = torch.zeros(max(len(fields[0]) - 1, 0), dtype=torch.bool)
    for field in fields:
        changes |= field.diff() != 0
    inner = changes.nonzero().flatten()
    last = inner.new_tensor([len(fields[0]) - 1] if len(fields[0]) else [])
    begins = torch.cat([torch.zeros_like(last), inner + 1])
    return begins, torch.cat([inner, last])
