"""What attention must know of a batch besides its tokens: documents, ring plan, KV cache."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from emu3_kernels.exchange import Exchange, NoExchange
from emu3_kernels.ring_attention import RingPlan
from megatron.core.packed_seq_params import PackedSeqParams


class KVCache:
    """Keys and values of all tokens so far, by layer; grows by whole calls of the decoder."""

    def __init__(self, capacity: int):
        self.capacity = capacity  # tokens; the buffers are allocated at once
        self.length = 0
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def append(
        self, layer: int, key_sbhd: torch.Tensor, value_sbhd: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store one layer's new keys and values; return all of them, [length + s, b, h, d]."""
        end = self.length + key_sbhd.shape[0]
        assert end <= self.capacity, f"KV cache of {self.capacity} tokens is full"
        if layer not in self._layers:
            shape = (self.capacity, *key_sbhd.shape[1:])
            self._layers[layer] = (key_sbhd.new_empty(shape), value_sbhd.new_empty(shape))
        keys, values = self._layers[layer]
        keys[self.length : end] = key_sbhd
        values[self.length : end] = value_sbhd
        return keys[:end], values[:end]

    def advance(self, tokens: int) -> None:
        """Every layer has stored these tokens."""
        self.length += tokens


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

    Either `plan` or `cache` is given.

    Attributes:
        plan: of this context parallel rank, over all rows put one behind the other.
        exchange: among the context parallel ranks; without it there is one.
        dropout: what attention dropout depends on.
        cache: earlier keys and values, in generation.
        visible: bool [b, 1, queries, keys], with a cache.
    """

    qkv_format: str = "sbhd"
    plan: RingPlan | None = None
    exchange: Exchange = field(default_factory=NoExchange)
    dropout: DropoutPlace = DropoutPlace()
    cache: KVCache | None = None
    visible: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> "SequenceLayout":
        """A copy whose plan is on a device; copies from pinned memory do not block."""
        plan = self.plan and self.plan.to(device, non_blocking=True)
        return replace(self, plan=plan)

    def pin_memory(self) -> "SequenceLayout":
        return replace(self, plan=self.plan and self.plan.pin_memory())

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
