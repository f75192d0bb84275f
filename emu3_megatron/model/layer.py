"""A decoder layer: Megatron's matrix products, our attention and our elementwise kernels."""

from typing import Any

import torch
from emu3_kernels.layer_elementwise import dropout_add, fill_swiglu, rotate_qkv, swiglu
from megatron.core.tensor_parallel import checkpoint
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from emu3_megatron.model.layout import SequenceLayout
from emu3_megatron.model.norm import AddNorm
from emu3_megatron.model.recompute import free_until_backward


class Layer(TransformerLayer):
    """Megatron's layer, of which SelfAttention and MLP hold the weights and compute nothing.

    Every module that has weights is called as a module, so that Megatron's hooks run.

    Args:
        recompute: parts to be computed again in the backward pass: norms, activation, attention.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: TransformerLayerSubmodules,
        *arguments: Any,
        recompute: frozenset[str] = frozenset(),
        **settings: Any,
    ):
        super().__init__(config, submodules, *arguments, **settings)
        self.recompute = recompute

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: None = None,
        *,
        rotary_pos_emb: Tensor,
        packed_seq_params: SequenceLayout,
        **ignored: Any,
    ) -> tuple[Tensor, None]:
        """Hidden states behind the layer.

        Args:
            hidden_states: [s, b, h]; s / tensor in sequence parallel.
            rotary_pos_emb: cosines, then sines, of the positions, [2, s, b, 1, d].
            packed_seq_params: who sees whom.

        Returns:
            hidden states, and None: Megatron's layers may have a context of cross attention.
        """
        dropout = self.hidden_dropout if self.training else 0.0
        residual, normed = self.input_layernorm(hidden_states)
        mixed, _ = self.self_attention.linear_qkv(normed)
        self._free_norm(self.input_layernorm, residual, normed, mixed)
        branch, _ = self.self_attention.linear_proj(
            self._attend(mixed, rotary_pos_emb, packed_seq_params)
        )
        residual, normed = self.pre_mlp_layernorm(residual, branch, dropout)
        return dropout_add(residual, self._feed_forward(residual, normed), dropout), None

    def _attend(self, mixed_sbc: Tensor, rotary_2sb1d: Tensor, layout: SequenceLayout) -> Tensor:
        attention = self.self_attention
        groups = attention.num_query_groups_per_partition

        def core(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attention.core_attention(
                query,
                key,
                value,
                None,
                attn_mask_type=attention.attn_mask_type,
                attention_bias=None,
                packed_seq_params=layout,
            )

        heads = rotate_qkv(mixed_sbc, rotary_2sb1d, groups)
        if "attention" in self.recompute and torch.is_grad_enabled():
            return checkpoint(core, False, *heads)
        return core(*heads)

    def _feed_forward(self, residual: Tensor, normed: Tensor) -> Tensor:
        gate_up, _ = self.mlp.linear_fc1(normed)
        self._free_norm(self.pre_mlp_layernorm, residual, normed, gate_up)
        activation = swiglu(gate_up)
        out, _ = self.mlp.linear_fc2(activation)
        if "activation" in self.recompute:
            kept = gate_up.detach()
            free_until_backward(activation, lambda freed: fill_swiglu(freed, kept), out)
        return out

    def _free_norm(self, norm: AddNorm, residual: Tensor, normed: Tensor, used_by: Tensor) -> None:
        if "norms" in self.recompute:
            kept = residual.detach()
            free_until_backward(normed, lambda freed: norm.fill(freed, kept), used_by)
