"""Layer specs: which classes make up the decoder's layers, by backend."""

import torch
from megatron.core.extensions import transformer_engine
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import ModuleSpec
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from emu3_megatron import upstream
from emu3_megatron.config.training import BackendConfig
from emu3_megatron.errors import InputError
from emu3_megatron.model.attention import DocumentAttention
from emu3_megatron.model.norm import RMSNorm
from emu3_megatron.model.tensors import FUSED_NORMS


def block_spec(num_layers: int, backend: BackendConfig) -> TransformerBlockSubmodules:
    """The spec of all layers and of the norm behind them.

    Checkpoints name tensors alike under every backend.

    Raises:
        InputError: the backend needs TransformerEngine, which does not import here.
    """
    if backend.layers == "native":
        layer = _layer(ColumnParallelLinear, RowParallelLinear, RMSNorm, _attention(backend))
        return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=RMSNorm)
    _require_transformer_engine("backend.layers")
    layer = _layer(
        upstream.without_data_on_meta(transformer_engine.TELayerNormColumnParallelLinear),
        upstream.without_data_on_meta(transformer_engine.TERowParallelLinear),
        IdentityOp,  # fused with the linear layers that follow
        _attention(backend),
        FUSED_NORMS,
    )
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=RMSNorm)


def _layer(
    column: type[torch.nn.Module],
    row: type[torch.nn.Module],
    norm: type[torch.nn.Module],
    attention: type[torch.nn.Module],
    names: dict[str, str] | None = None,
) -> ModuleSpec:
    """One layer.

    Args:
        names: prefixes of its tensors, each with the prefix that checkpoints have instead.
    """
    self_attention = ModuleSpec(
        SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=column,
            core_attention=attention,
            linear_proj=row,
            q_layernorm=IdentityOp,
            k_layernorm=IdentityOp,
        ),
    )
    return ModuleSpec(
        TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=self_attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=upstream.mlp_spec(MLPSubmodules(linear_fc1=column, linear_fc2=row)),
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=names or {},
        ),
    )


def _attention(backend: BackendConfig) -> type[torch.nn.Module]:
    """TransformerEngine's has the whole row as its document: the recipe sees to that."""
    if backend.attention == "auto":
        return DocumentAttention
    _require_transformer_engine("backend.attention")
    return transformer_engine.TEDotProductAttention


def _require_transformer_engine(key: str) -> None:
    # Where it does not import, Megatron puts mocks in the place of its classes.
    if not transformer_engine.HAVE_TE:
        other = "auto" if key == "backend.attention" else "native"
        raise InputError(
            f"{key}=transformer_engine: TransformerEngine does not import here; "
            f"install it, or set {key}={other}"
        )
