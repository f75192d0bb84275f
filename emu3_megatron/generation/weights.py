"""The decoder's weights as a decode step reads them: views of what Megatron's modules hold."""

from dataclasses import dataclass, replace

import torch
from emu3_kernels.weight_only import QuantizedWeight, quantize
from torch import Tensor

from emu3_megatron.model import Decoder
from emu3_megatron.model.tensors import EMBEDDING, FINAL_NORM, HEAD, named_tensors


@dataclass(frozen=True)
class LayerWeights:
    """One layer's, this tensor parallel rank's share; linear weights are [out, in].

    Attributes:
        attention_norm_h: of the norm before attention.
        qkv_oh: for each KV head its query heads, its key and its value, one behind the other.
        projection_ho: of attention's output; partial sums over the ranks.
        mlp_norm_h: of the norm before the MLP.
        gate_up_oh: the gate's rows, then those that it multiplies.
        down_ho: of the MLP's output; partial sums over the ranks.
    """

    attention_norm_h: Tensor
    qkv_oh: Tensor | QuantizedWeight
    projection_ho: Tensor | QuantizedWeight
    mlp_norm_h: Tensor
    gate_up_oh: Tensor | QuantizedWeight
    down_ho: Tensor | QuantizedWeight


@dataclass(frozen=True)
class DecodeWeights:
    """All of a decoder's weights and the sizes that a step needs.

    Attributes:
        embedding_vh: this rank's rows of the vocabulary; head_vh likewise.
        kv_heads: of this rank; each serves `queries` query heads of size `head_dim`.
    """

    embedding_vh: Tensor
    layers: tuple[LayerWeights, ...]
    final_norm_h: Tensor
    head_vh: Tensor
    kv_heads: int
    queries: int
    head_dim: int
    rope_base: float
    epsilon: float

    @classmethod
    def of(cls, decoder: Decoder) -> "DecodeWeights":
        """Views of a decoder's parameters: they follow its training."""
        config = decoder.config
        tensors = {name: tensor.detach() for name, tensor in named_tensors(decoder)}
        assert config.num_query_groups is not None
        assert config.kv_channels is not None
        return cls(
            embedding_vh=tensors[EMBEDDING],
            layers=tuple(_layer(tensors, i) for i in range(config.num_layers)),
            final_norm_h=tensors[FINAL_NORM],
            head_vh=tensors[HEAD],
            kv_heads=config.num_query_groups // config.tensor_model_parallel_size,
            queries=config.num_attention_heads // config.num_query_groups,
            head_dim=config.kv_channels,
            rope_base=decoder.rope_base,
            epsilon=config.layernorm_epsilon,
        )

    def in_eight_bits(self) -> "DecodeWeights":
        """A copy whose layers hold their linear weights in 8 bits; embedding and head stay."""
        names = ("qkv_oh", "projection_ho", "gate_up_oh", "down_ho")
        layers = (
            replace(layer, **{name: quantize(getattr(layer, name)) for name in names})
            for layer in self.layers
        )
        return replace(self, layers=tuple(layers))

    @property
    def device(self) -> torch.device:
        return self.head_vh.device

    @property
    def dtype(self) -> torch.dtype:
        return self.head_vh.dtype


def _layer(tensors: dict[str, Tensor], number: int) -> LayerWeights:
    tensor = lambda name: tensors[f"block.layers.{number}.{name}.weight"]
    return LayerWeights(
        attention_norm_h=tensor("input_layernorm"),
        qkv_oh=tensor("self_attention.linear_qkv"),
        projection_ho=tensor("self_attention.linear_proj"),
        mlp_norm_h=tensor("pre_mlp_layernorm"),
        gate_up_oh=tensor("mlp.linear_fc1"),
        down_ho=tensor("mlp.linear_fc2"),
    )
