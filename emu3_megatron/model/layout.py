"""What attention must know of a batch besides its tokens: documents and the ring plan."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from emu3_kernels.exchange import Exchange, NoExchange
from emu3_kernels.movable import Move
from emu3_kernels.ring_attention import RingPlan
from megatron.core.packed_seq_params import PackedSeqParams


@dataclass(frozen=True)
class DropoutPlace:
    """What attention dropout of a micro-batch depends on: never on the parallel layout.

    Attributes:
        seed: of the step; layers add their number.
        first_token: number of the micro-batch's first token among all of the step.
    """

    seed: int = 0
    first_token: int = 0


@dataclass
class SequenceLayout(PackedSeqParams):
    """Who sees whom. Megatron hands this through its layers untouched, to our attention.

    Attributes:
        plan: of this context parallel rank, over all rows put one behind the other.
        exchange: among the context parallel ranks; without it there is one.
        dropout: what attention dropout depends on.
    """

    qkv_format: str = "sbhd"
    plan: RingPlan | None = None
    exchange: Exchange = field(default_factory=NoExchange)
    dropout: DropoutPlace = DropoutPlace()

    def map_tensors(self, move: Move) -> "SequenceLayout":
        """A copy that holds `move(tensor)` in the place of each tensor of the plan."""
        return replace(self, plan=self.plan and self.plan.map_tensors(move))

    @classmethod
    def of_documents(
        cls,
        boundaries: Sequence[torch.Tensor | Sequence[int]],
        order_bcs: torch.Tensor | None = None,
        rank: int = 0,
    ) -> "SequenceLayout":
        """Causal attention inside each document; on the CPU, without an exchange.

        Args:
            boundaries: for each row, where its documents begin, and the row's length at the end.
            order_bcs: for each row the tokens that each context parallel rank holds, ascending,
                int64 [b, ranks, s / ranks]; without it one rank holds all.
            rank: which of those ranks this one is.
        """
        bounds = [torch.as_tensor(row, dtype=torch.int64) for row in boundaries]
        starts = [0, *accumulate(int(row[-1]) for row in bounds)]
        if order_bcs is None:
            shares = [torch.arange(starts[-1])]
        else:
            row_starts_b11 = torch.tensor(starts[:-1])[:, None, None]
            shares = list((order_bcs + row_starts_b11).transpose(0, 1).flatten(1))
        joined = torch.cat([row + start for row, start in zip(bounds, starts[:-1], strict=True)])
        return cls(plan=RingPlan.build(shares, joined.unique(), rank))
