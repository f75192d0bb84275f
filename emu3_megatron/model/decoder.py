"""The decoder: Megatron-core's embedding and transformer block, our norm, attention and head."""

from dataclasses import dataclass
from typing import Any

import torch
from emu3_kernels.linear_cross_entropy import LinearCrossEntropy
from megatron.core.enums import ModelType
from megatron.core.extensions import transformer_engine
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from emu3_megatron import upstream
from emu3_megatron.config import ModelConfig
from emu3_megatron.config.training import BackendConfig, ParallelConfig
from emu3_megatron.errors import InputError
from emu3_megatron.model.attention import DocumentAttention
from emu3_megatron.model.head import OutputHead
from emu3_megatron.model.initialization import initialize
from emu3_megatron.model.layout import SequenceLayout
from emu3_megatron.model.norm import RMSNorm
from emu3_megatron.vocabulary import Vocabulary


@dataclass(frozen=True)
class Targets:
    """What the decoder is to predict: labels, their weights in the loss, their classes; [b, s]."""

    labels_bs: torch.Tensor
    weights_bs: torch.Tensor
    classes_bs: torch.Tensor
    z_loss: float = 0.0


class Decoder(MegatronModule):
    """Tokens in; hidden states, logits or the objective's sums out.

    Args:
        config: Megatron's view of the model, from `transformer_config`.
        vocabulary: decides the rows of embedding and head.
        rope_base: base of the rotary frequencies.
        backend: who computes what.
    """

    def __init__(
        self,
        config: TransformerConfig,
        vocabulary: Vocabulary,
        rope_base: float,
        backend: BackendConfig | None = None,
    ):
        super().__init__(config)
        backend = backend or BackendConfig()
        padded_size = vocabulary.padded_size(config.tensor_model_parallel_size)
        self.model_type = ModelType.encoder_or_decoder  # Megatron's schedules ask for it
        self.rope_base = rope_base
        self.embedding = LanguageModelEmbedding(
            config, padded_size, max_sequence_length=0, position_embedding_type="rope"
        )
        self.block = TransformerBlock(config, _block_spec(config.num_layers, backend.attention))
        self.head = OutputHead(config, vocabulary.size, padded_size, backend.loss)

    def forward(
        self,
        *,
        tokens_bs: torch.Tensor,
        positions_bs: torch.Tensor,
        layout: SequenceLayout,
        targets: Targets | None = None,
    ) -> torch.Tensor | LinearCrossEntropy:
        """Sums of the objective over this rank's tokens, or without targets logits [b, s, v].

        Args:
            tokens_bs: int64, this rank's tokens (a context parallel rank holds a part).
            positions_bs: int64, positions inside each token's document.
            layout: who sees whom.
        """
        hidden_sbh = self.hidden(tokens_bs, positions_bs, layout)
        if targets is None:
            return self.head.logits(hidden_sbh)
        return self.head.loss(
            hidden_sbh,
            targets.labels_bs,
            targets.weights_bs,
            targets.classes_bs,
            targets.z_loss,
        )

    def hidden(
        self, tokens_bs: torch.Tensor, positions_bs: torch.Tensor, layout: SequenceLayout
    ) -> torch.Tensor:
        """Hidden states after the last norm, [s, b, h]; s / tensor in sequence parallel."""
        return self.block(
            self.embedding(tokens_bs, positions_bs),
            attention_mask=None,
            rotary_pos_emb=self._rotary(positions_bs),
            packed_seq_params=layout,
        )

    def _rotary(self, positions_bs: torch.Tensor) -> torch.Tensor:
        """Angles in fp32, rotate-half layout: [s, b, 1, d]."""
        dim = self.config.kv_channels
        exponents = torch.arange(0, dim, 2, device=positions_bs.device, dtype=torch.float32) / dim
        angles_sbd = positions_bs.T[..., None] * self.rope_base**-exponents
        return torch.cat([angles_sbd, angles_sbd], dim=-1)[:, :, None]

    def set_input_tensor(self, input_tensor: Any) -> None:
        """Megatron's schedules hand every model its pipeline input; there is no pipeline here."""


def _block_spec(num_layers: int, attention: str) -> TransformerBlockSubmodules:
    self_attention = ModuleSpec(
        SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear,
            core_attention=_core_attention(attention),
            linear_proj=RowParallelLinear,
            q_layernorm=IdentityOp,
            k_layernorm=IdentityOp,
        ),
    )
    mlp = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    layer = ModuleSpec(
        TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=self_attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=upstream.mlp_spec(mlp),
            mlp_bda=get_bias_dropout_add,
        ),
    )
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=RMSNorm)


def _core_attention(attention: str) -> type[torch.nn.Module]:
    """TransformerEngine's has the whole row as its document: the recipe sees to that."""
    if attention == "auto":
        return DocumentAttention
    # Where it does not import, Megatron puts mocks in the place of its classes.
    if not transformer_engine.HAVE_TE:
        raise InputError(
            "backend.attention=transformer_engine: TransformerEngine does not import here; "
            "install it, or set backend.attention=auto"
        )
    return transformer_engine.TEDotProductAttention


def transformer_config(
    model: ModelConfig,
    parallel: ParallelConfig | None = None,
    *,
    bf16: bool = False,
    recompute: str = "none",
    on_ambient_device: bool = False,
) -> TransformerConfig:
    """Megatron's configuration of an Emu3 decoder.

    Args:
        on_ambient_device: make weights on torch's default device (meta, say), not on the GPU.
    """
    parallel = parallel or ParallelConfig()
    # Weights are drawn after building, whole and by name, so that no layout changes them.
    leave = lambda tensor: tensor
    full = {"recompute_method": "uniform", "recompute_num_layers": 1} if recompute == "full" else {}
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
        recompute_granularity=None if recompute == "none" else recompute,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        **full,
    )


def build_decoder(
    model: ModelConfig,
    parallel: ParallelConfig | None = None,
    *,
    seed: int | None = 0,
    bf16: bool = False,
    recompute: str = "none",
    backend: BackendConfig | None = None,
) -> Decoder:
    """Build this rank's share of a decoder and draw its weights.

    Args:
        seed: of the weights; None leaves them undrawn, for a checkpoint to fill.
    """
    config = transformer_config(model, parallel, bf16=bf16, recompute=recompute)
    decoder = Decoder(config, model.vocabulary(), model.rope_base, backend)
    if seed is not None:
        initialize(decoder, model.vocabulary(), std=model.init_std, seed=seed)
    return decoder


def count_parameters(model: ModelConfig) -> int:
    """Parameters of the decoder without padding rows, counted on the meta device."""
    vocabulary = model.vocabulary()
    with torch.device("meta"):
        config = transformer_config(model, on_ambient_device=True)
        decoder = Decoder(config, vocabulary, model.rope_base)
    padding = vocabulary.padded_size(1) - vocabulary.size
    return sum(p.numel() for p in decoder.parameters()) - 2 * padding * model.hidden
