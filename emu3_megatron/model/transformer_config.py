"""Megatron's configuration of an Emu3 decoder."""

import torch
from megatron.core.transformer import TransformerConfig

from emu3_megatron import upstream
from emu3_megatron.config import ModelConfig
from emu3_megatron.config.training import ParallelConfig, Recompute


def transformer_config(
    model: ModelConfig,
    parallel: ParallelConfig | None = None,
    *,
    bf16: bool = False,
    recompute: Recompute = "none",
    on_ambient_device: bool = False,
    into_main_grad: bool = False,
    fp8: str = "none",
) -> TransformerConfig:
    """Megatron's configuration of an Emu3 decoder.

    Args:
        on_ambient_device: make weights on torch's default device (meta, say), not on the GPU.
        into_main_grad: products add weight gradients to Megatron's buffers, which there must be.
        fp8: of the recipe's backend.
    """
    if into_main_grad:
        upstream.add_weight_gradients_by_torch()
    parallel = parallel or ParallelConfig()
    # Weights are drawn after building, whole and by name, so that no layout changes them.
    leave = lambda tensor: tensor
    full = {"recompute_method": "uniform", "recompute_num_layers": 1} if recompute == "full" else {}
    eight = {} if fp8 == "none" else {"fp8": "hybrid", "fp8_recipe": fp8}
    return TransformerConfig(
        num_layers=model.layers,
        hidden_size=model.hidden,
        ffn_hidden_size=model.ffn,
        num_attention_heads=model.heads,
        num_query_groups=model.kv_heads,
        kv_channels=model.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_epsilon,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        # Emu3's one dropout acts in four places: embedding, attention probabilities, and the
        # residual branches of attention and MLP (modeling_emu3.py).
        hidden_dropout=model.dropout,
        attention_dropout=model.dropout,
        init_method=leave,
        output_layer_init_method=leave,
        embedding_init_method=leave,
        use_cpu_initialization=on_ambient_device,
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        tensor_model_parallel_size=parallel.tensor,
        context_parallel_size=parallel.context,
        sequence_parallel=parallel.sequence,
        # The loss is divided by the global batch's weight; Megatron must not average again.
        calculate_per_token_loss=True,
        # Parts of a layer are our own layer's, see `Layer`.
        recompute_granularity="full" if recompute == "full" else None,
        gradient_accumulation_fusion=into_main_grad,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        tp_comm_overlap=parallel.overlap_tensor,
        **eight,
        **full,
    )
