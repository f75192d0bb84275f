"""Grouped-query attention inside documents, in the place of Megatron's core attention."""

from typing import Any

import torch
from emu3_kernels.attention_tile import Backend
from emu3_kernels.ring_attention import RingDropout, ring_attention
from megatron.core.transformer import TransformerConfig

from emu3_megatron.model.layout import SequenceLayout
from emu3_megatron.parallel.groups import tensor_rank


class DocumentAttention(torch.nn.Module):
    """Softmax attention between heads that Megatron's layer has projected and rotated."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        *args: Any,
        backend: Backend = "auto",
        **kwargs: Any,
    ):
        super().__init__()
        self.backend = backend
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
        """See `attend`."""
        dropout = self.dropout if self.training else 0.0
        return attend(
            *(query_sbhd, key_sbhd, value_sbhd, packed_seq_params),
            *(self.layer_number, dropout, self.backend),
        )


def attend(
    query_sbhd: torch.Tensor,
    key_sbhd: torch.Tensor,
    value_sbhd: torch.Tensor,
    layout: SequenceLayout,
    layer_number: int,
    dropout: float = 0.0,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Attend inside documents.

    Args:
        query_sbhd: [s, b, heads, d], this rank's tokens and heads.
        key_sbhd: [s, b, kv_heads, d]; value_sbhd likewise.
        layout: who sees whom.
        layer_number: from 1; of dropout.
        backend: of attention tiles.

    Returns:
        [s, b, heads * d]
    """
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
        dropout=_dropout(layout, layer_number, heads, dropout),
        backend=backend,
    )
    return out_thd.view(b, s, heads * dim).transpose(0, 1)


def _dropout(
    layout: SequenceLayout, layer_number: int, heads: int, dropout: float
) -> RingDropout | None:
    """Dropout by the place of heads and tokens, so that no layout or recompute changes it."""
    if not dropout:
        return None
    return RingDropout(
        p=dropout,
        seed=layout.dropout.seed + layer_number,
        first_head=tensor_rank() * heads,
        first_token=layout.dropout.first_token,
    )
