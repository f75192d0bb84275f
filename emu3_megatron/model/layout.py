"""What attention must know of a batch besides its tokens; it travels with it through the layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
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


@dataclass
class SequenceLayout(PackedSeqParams):
    """Who sees whom. Megatron hands this through its layers untouched, to our attention.

    Either `boundaries` or `visible` is given.

    Attributes:
        boundaries: for each row, where its documents begin, and the row's length at the end:
            causal attention inside each document.
        visible: bool [b, 1, queries, keys], for ranks that hold other tokens than the keys they
            read (context parallelism, generation).
        cache: earlier keys and values, in generation.
    """

    qkv_format: str = "sbhd"
    boundaries: Sequence[Sequence[int]] | None = None
    visible: torch.Tensor | None = None
    cache: KVCache | None = None

    @classmethod
    def for_context_rank(
        cls, segments_bs: torch.Tensor, order_cs: torch.Tensor, rank: int
    ) -> "SequenceLayout":
        """Layout of one context parallel rank that gathers all keys.

        Args:
            segments_bs: document of each token of the whole sequence.
            order_cs: which tokens each rank holds, [ranks, s / ranks].
        """
        keys_s = order_cs.reshape(-1)
        queries_s = order_cs[rank]
        same_document = segments_bs[:, queries_s, None] == segments_bs[:, None, keys_s]
        causal = queries_s[:, None] >= keys_s[None, :]
        return cls(visible=(same_document & causal)[:, None])
