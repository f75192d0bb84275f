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
from emu3_megatron.model.layer import Layer
from emu3_megatron.model.norm import AddNorm, RMSNorm
from emu3_megatron.model.tensors import FUSED_NORMS


def block_spec(
    num_layers: int, backend: BackendConfig, recompute: frozenset[str] = frozenset()
) -> TransformerBlockSubmodules:
    """The spec of all layers and of the norm behind them.

    Checkpoints name tensors alike under every backend.

    Args:
        recompute: see `Layer`; TransformerEngine's layers take nothing from it.

    Raises:
        InputError: the backend needs TransformerEngine, which does not import here.
    """
    if backend.layers == "native":
        submodules = _submodules(
            ColumnParallelLinear, RowParallelLinear, AddNorm, _attention(backend)
        )
        layer = ModuleSpec(Layer, params={"recompute": recompute}, submodules=submodules)
    else:
        _require_transformer_engine("backend.layers")
        submodules = _submodules(
            upstream.without_data_on_meta(transformer_engine.TELayerNormColumnParallelLinear),
            upstream.without_data_on_meta(transformer_engine.TERowParallelLinear),
            IdentityOp,  # fused with the linear layers that follow
            _attention(backend),
        )
        submodules.self_attn_bda = submodules.mlp_bda = get_bias_dropout_add
        submodules.sharded_state_dict_keys_map = FUSED_NORMS
        layer = ModuleSpec(TransformerLayer, submodules=submodules)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=RMSNorm)


def _submodules(
    column: type[torch.nn.Module],
    row: type[torch.nn.Module],
    norm: type[torch.nn.Module],
    attention: ModuleSpec,
) -> TransformerLayerSubmodules:
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
    return TransformerLayerSubmodules(
        input_layernorm=norm,
        self_attention=self_attention,
        pre_mlp_layernorm=norm,
        mlp=upstream.mlp_spec(MLPSubmodules(linear_fc1=column, linear_fc2=row)),
    )


def _attention(backend: BackendConfig) -> ModuleSpec:
    """TransformerEngine's has the whole row as its document: the recipe sees to that."""
    if backend.attention != "transformer_engine":
        return ModuleSpec(DocumentAttention, params={"backend": backend.attention})
    _require_transformer_engine("backend.attention")
    return ModuleSpec(transformer_engine.TEDotProductAttention)


def _require_transformer_engine(key: str) -> None:
    # Where it does not import, Megatron puts mocks in the place of its classes.
    if not transformer_engine.HAVE_TE:
        other = "auto" if key == "backend.attention" else "native"
        raise InputError(
            f"{key}=transformer_engine: TransformerEngine does not import here; "
            f"install it, or set {key}={other}"
        )
