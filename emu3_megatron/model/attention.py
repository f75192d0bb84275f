"""Grouped-query attention inside documents, in the place of Megatron's core attention."""

from itertools import pairwise
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import (
    gather_from_sequence_parallel_region,
    get_cuda_rng_tracker,
)
from megatron.core.transformer import TransformerConfig
from torch.nn.functional import scaled_dot_product_attention

from emu3_megatron.model.layout import SequenceLayout


class DocumentAttention(torch.nn.Module):
    """Softmax attention between heads that Megatron's layer has projected and rotated.

    With context parallelism every rank gathers all keys and values; gradients are summed back.
    """

    def __init__(self, config: TransformerConfig, layer_number: int, *args: Any, **kwargs: Any):
        super().__init__()
        self.layer_number = layer_number
        self.dropout = config.attention_dropout
        self.context_parallel = config.context_parallel_size > 1

    def forward(
        self,
        query_sbhd: torch.Tensor,
        key_sbhd: torch.Tensor,
        value_sbhd: torch.Tensor,
        attention_mask: None,
        *,
        packed_seq_params: SequenceLayout,
        **ignored: Any,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query_sbhd: [s, b, heads, d], this rank's tokens and heads.
            key_sbhd: [s, b, kv_heads, d]; value_sbhd likewise.
            packed_seq_params: who sees whom.

        Returns:
            [s, b, heads * d]
        """
        layout = packed_seq_params
        if layout.cache is not None:
            key_sbhd, value_sbhd = layout.cache.append(self.layer_number, key_sbhd, value_sbhd)
        elif self.context_parallel:
            group = parallel_state.get_context_parallel_group()
            key_sbhd = gather_from_sequence_parallel_region(key_sbhd, group=group)
            value_sbhd = gather_from_sequence_parallel_region(value_sbhd, group=group)
        # Heads differ between tensor parallel ranks, so their dropout must too.
        with get_cuda_rng_tracker().fork():
            return self._attend(query_sbhd, key_sbhd, value_sbhd, layout)

    def _attend(
        self,
        query_sbhd: torch.Tensor,
        key_sbhd: torch.Tensor,
        value_sbhd: torch.Tensor,
        layout: SequenceLayout,
    ) -> torch.Tensor:
        query, key, value = (t.permute(1, 2, 0, 3) for t in (query_sbhd, key_sbhd, value_sbhd))
        dropout = self.dropout if self.training else 0.0
        if layout.visible is not None:
            out_bhsd = scaled_dot_product_attention(
                query, key, value, attn_mask=layout.visible, dropout_p=dropout, enable_gqa=True
            )
        else:
            assert layout.boundaries is not None
            rows = [
                _attend_inside(query[b], key[b], value[b], bounds, dropout)
                for b, bounds in enumerate(layout.boundaries)
            ]
            out_bhsd = torch.stack(rows)
        return out_bhsd.permute(2, 0, 1, 3).flatten(2)


def _attend_inside(
    query_hsd: torch.Tensor,
    key_hsd: torch.Tensor,
    value_hsd: torch.Tensor,
    bounds: Any,
    dropout: float,
) -> torch.Tensor:
    """Causal attention inside each of one row's documents."""
    documents = [
        scaled_dot_product_attention(
            query_hsd[None, :, start:end],
            key_hsd[None, :, start:end],
            value_hsd[None, :, start:end],
            dropout_p=dropout,
            is_causal=True,
            enable_gqa=True,
        )[0]
        for start, end in pairwise(bounds)
    ]
    return torch.cat(documents, dim=1)
