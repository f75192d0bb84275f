"""The plan of a ring: in each step, which keys a rank sends, receives and sees.

A plan is made on the CPU from the order of the tokens and the document boundaries, without
communication: in a data worker, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from emu3_kernels.attention_tile import KeyRanges
from emu3_kernels.movable import Movable, Move
from emu3_kernels.ring_attention.token_runs import TokenRuns


@dataclass(frozen=True, eq=False)
class RingStep(Movable):
    """Keys that a rank receives from one rank, and keys that it sends to another meanwhile.

    Attributes:
        source: the rank that sends the keys; in the first step this rank itself.
        target: the rank that this one sends keys to.
        ranges: which of the received keys each query sees; None if nothing is received.
        keys_k: the received keys, int64 indices into the whole sequence.
        sent_rows: the keys to send, int64 positions among this rank's own.
    """

    source: int
    target: int
    ranges: KeyRanges | None
    keys_k: torch.Tensor
    sent_rows: torch.Tensor

    def map_tensors(self, move: Move) -> "RingStep":
        return replace(
            self,
            ranges=self.ranges.map_tensors(move) if self.ranges is not None else None,
            keys_k=move(self.keys_k),
            sent_rows=move(self.sent_rows),
        )


@dataclass(frozen=True, eq=False)
class RingPlan(Movable):
    """All steps of one rank. All ranks take equally many, also where one sends nothing.

    Attributes:
        rank: whose plan it is.
        queries_t: this rank's tokens, int64 indices into the whole sequence, ascending.
        steps: in step s keys are received from rank - s and sent to rank + s.
    """

    rank: int
    queries_t: torch.Tensor
    steps: tuple[RingStep, ...]
    _numbers: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict, repr=False)

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
            device: where the plan is moved once it is built.

        Raises:
            ValueError: tokens of a rank are not ascending.
        """
        boundaries = boundaries.cpu().long()
        runs = [TokenRuns.of(tokens, boundaries) for tokens in shares]
        own = shares[rank]
        own_ranges = KeyRanges.of_segments(runs[rank].own_segments(), len(own), len(own))
        first = RingStep(rank, rank, own_ranges, keys_k=own, sent_rows=own.new_empty(0))
        others = (_exchanging(shares, runs, rank, number) for number in range(1, len(shares)))
        return cls(rank, own, (first, *others)).to(device)

    def map_tensors(self, move: Move) -> "RingPlan":
        steps = tuple(step.map_tensors(move) for step in self.steps)
        return RingPlan(self.rank, move(self.queries_t), steps)

    @property
    def size(self) -> int:
        """Ranks of the ring."""
        return len(self.steps)

    def numbers(self, tokens: torch.Tensor, first: int) -> torch.Tensor:
        """`queries_t` or a step's `keys_k`, counted from `first`; computed once for all layers."""
        key = id(tokens), first
        if first and key not in self._numbers:
            self._numbers[key] = tokens + first
        return self._numbers.get(key, tokens)

    @property
    def received_rows(self) -> int:
        """Keys of other ranks that this one receives, over all steps."""
        return sum(len(step.keys_k) for step in self.steps[1:])


def _exchanging(
    shares: Sequence[torch.Tensor], runs: Sequence[TokenRuns], rank: int, number: int
) -> RingStep:
    """A step after the first, counted from 0, of one rank."""
    source, target = (rank - number) % len(shares), (rank + number) % len(shares)
    segments, received = runs[rank].segments_over(runs[source])
    _, sent_rows = runs[target].segments_over(runs[rank])
    ranges = None
    if len(received):
        ranges = KeyRanges.of_segments(segments, len(shares[rank]), len(received))
    return RingStep(source, target, ranges, shares[source][received], sent_rows)
