"""Converts parameters between Megatron's fused tensors and Hugging Face's separate ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from emu3_megatron.config import ModelConfig
from emu3_megatron.interchange.layouts import DecoderNames
from emu3_megatron.model.tensors import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    is_in_vocabulary,
    layer_and_kind,
)

_OUTER = {EMBEDDING: "embed_tokens.weight", FINAL_NORM: "norm.weight"}
_QKV = "self_attention.linear_qkv"
_GATE_UP = "mlp.linear_fc1"
_LAYER = {
    "input_layernorm": ("input_layernorm",),
    _QKV: ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention.linear_proj": ("self_attn.o_proj",),
    "pre_mlp_layernorm": ("post_attention_layernorm",),
    _GATE_UP: ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.linear_fc2": ("mlp.down_proj",),
}


def counterparts(parameter: str, names: DecoderNames) -> list[str]:
    """The tensors of Hugging Face that make up one parameter of our decoder."""
    if parameter == HEAD:
        return [names.head]
    if parameter in _OUTER:
        return [names.body + _OUTER[parameter]]
    layer, kind = layer_and_kind(parameter)
    return [f"{names.body}layers.{layer}.{theirs}.weight" for theirs in _LAYER[kind]]


def fuse(parameter: str, tensors: Sequence[Tensor], model: ModelConfig, rows: int) -> Tensor:
    """One parameter out of its counterparts.

    Args:
        rows: of the parameter; embedding and head get rows of zeros up to here.
    """
    if is_in_vocabulary(parameter):
        (table_vh,) = tensors
        return torch.nn.functional.pad(table_vh, (0, 0, 0, rows - len(table_vh)))
    kind = layer_and_kind(parameter)[1] if parameter not in _OUTER else parameter
    if kind == _QKV:
        # Megatron's rows: each group's queries, then its key, then its value.
        grouped = [tensor.unflatten(0, (model.kv_heads, -1)) for tensor in tensors]
        return torch.cat(grouped, dim=1).flatten(0, 1)
    return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]


def split(parameter: str, tensor: Tensor, model: ModelConfig) -> list[Tensor]:
    """The inverse of `fuse`; the rows that pad the vocabulary are left out."""
    if is_in_vocabulary(parameter):
        return [tensor[: model.vocabulary().size]]
    kind = layer_and_kind(parameter)[1] if parameter not in _OUTER else parameter
    if kind == _QKV:
        queries = model.heads // model.kv_heads * model.head_dim
        parts = [queries, model.head_dim, model.head_dim]
        grouped = tensor.unflatten(0, (model.kv_heads, -1))
        return [part.flatten(0, 1) for part in grouped.split(parts, dim=1)]
    return list(tensor.chunk(2)) if kind == _GATE_UP else [tensor]
