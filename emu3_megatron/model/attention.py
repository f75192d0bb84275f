"""Grouped-query attention inside documents, in the place of Megatron's core attention."""

from typing import Any

import torch
from emu3_kernels.ring_attention import RingDropout, ring_attention
from megatron.core import parallel_state
from megatron.core.transformer import TransformerConfig
from torch.nn.functional import scaled_dot_product_attention

from emu3_megatron.model.layout import SequenceLayout


class DocumentAttention(torch.nn.Module):
    """Softmax attention between heads that Megatron's layer has projected and rotated."""

    def __init__(self, config: TransformerConfig, layer_number: int, *args: Any, **kwargs: Any):
        super().__init__()
        self.layer_number = layer_number
        self.dropout = config.attention_dropout

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
        if packed_seq_params.cache is not None:
            return self._attend_cached(query_sbhd, key_sbhd, value_sbhd, packed_seq_params)
        return self._attend_ring(query_sbhd, key_sbhd, value_sbhd, packed_seq_params)

    def _attend_ring(
        self,
        query_sbhd: torch.Tensor,
        key_sbhd: torch.Tensor,
        value_sbhd: torch.Tensor,
        layout: SequenceLayout,
    ) -> torch.Tensor:
        assert layout.plan is not None
        s, b, heads, dim = query_sbhd.shape
        # Rows become one sequence: documents keep them apart.
        query, key, value = (
            tensor.transpose(0, 1).flatten(0, 1) for tensor in (query_sbhd, key_sbhd, value_sbhd)
        )
        out_thd = ring_attention(
            query,
            key,
            value,
            layout.plan,
            layout.exchange,
            scale=dim**-0.5,
            dropout=self._dropout(layout, heads),
        )
        return out_thd.view(b, s, heads * dim).transpose(0, 1)

    def _dropout(self, layout: SequenceLayout, heads: int) -> RingDropout | None:
        """Dropout by the place of heads and tokens, so that no layout or recompute changes it."""
        if not self.training or not self.dropout:
            return None
        return RingDropout(
            p=self.dropout,
            seed=layout.dropout.seed + self.layer_number,
            first_head=parallel_state.get_tensor_model_parallel_rank() * heads,
            first_token=layout.dropout.first_token,
        )

    def _attend_cached(
        self,
        query_sbhd: torch.Tensor,
        key_sbhd: torch.Tensor,
        value_sbhd: torch.Tensor,
        layout: SequenceLayout,
    ) -> torch.Tensor:
        assert layout.cache is not None
        key_sbhd, value_sbhd = layout.cache.append(self.layer_number, key_sbhd, value_sbhd)
        query, key, value = (t.permute(1, 2, 0, 3) for t in (query_sbhd, key_sbhd, value_sbhd))
        out_bhsd = scaled_dot_product_attention(
            query, key, value, attn_mask=layout.visible, enable_gqa=True
        )
        return out_bhsd.permute(2, 0, 1, 3).flatten(2)
