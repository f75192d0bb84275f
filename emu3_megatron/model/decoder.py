"""The decoder: Megatron-core's embedding and transformer block, our norm, attention and head."""

from typing import Any, Literal

import torch
from emu3_kernels.linear_cross_entropy import LinearCrossEntropy, TokenLogProbabilities
from megatron.core.enums import ModelType
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import Tensor

from emu3_megatron.config import ModelConfig
from emu3_megatron.config.training import (
    BackendConfig,
    ParallelConfig,
    Recompute,
    recomputed_parts,
)
from emu3_megatron.model.backends import block_spec
from emu3_megatron.model.head import OutputHead
from emu3_megatron.model.initialization import initialize
from emu3_megatron.model.inputs import Inputs
from emu3_megatron.model.transformer_config import transformer_config
from emu3_megatron.vocabulary import Vocabulary

Want = Literal["sums", "log_probabilities", "logits", "hidden"]


class Decoder(MegatronModule):
    """Tokens in; what is wanted of them out.

    Args:
        config: Megatron's view of the model, from `transformer_config`.
        vocabulary: decides the rows of embedding and head.
        rope_base: base of the rotary frequencies.
        backend: who computes what.
        recompute: parts of a layer to be computed again in the backward pass, see `Layer`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        vocabulary: Vocabulary,
        rope_base: float,
        backend: BackendConfig | None = None,
        recompute: frozenset[str] = frozenset(),
    ):
        super().__init__(config)
        backend = backend or BackendConfig()
        padded_size = vocabulary.padded_size(config.tensor_model_parallel_size)
        self.model_type = ModelType.encoder_or_decoder  # Megatron's schedules ask for it
        self.rope_base = rope_base
        self.embedding = LanguageModelEmbedding(
            config, padded_size, max_sequence_length=0, position_embedding_type="rope"
        )
        self.block = TransformerBlock(config, block_spec(config.num_layers, backend, recompute))
        self.turned_by_layers = backend.layers == "native"
        self.head = OutputHead(config, vocabulary.size, padded_size, backend.loss)

    def forward(
        self,
        inputs: Inputs,
        want: Want = "logits",
        z_loss: float = 0.0,
        candidates: int | None = None,
        known_scale: Tensor | None = None,
    ) -> Tensor | LinearCrossEntropy | TokenLogProbabilities:
        """Compute what is wanted of this rank's tokens.

        Args:
            want: one of
                `sums`: the weighted loss and its sums by class, `LinearCrossEntropy`; no logits
                    are kept.
                `log_probabilities`: `TokenLogProbabilities`, [b, s] each: of each label, whether it
                    has the largest logit, and the entropy.
                `logits`: [b, s, v] over the whole vocabulary, the same on all tensor parallel
                    ranks.
                `hidden`: states behind the last norm, [s, b, h]; s / tensor in sequence parallel.
            z_loss: of `sums`, weight of the squared log-partition.
            candidates: of `sums`, ids that the softmax is over, from 0; all without it. The head's
                other rows get no gradient.
            known_scale: of `sums`, the gradient that backward will come to the loss with, where
                the caller knows it. The head then adds its weight's gradient to Megatron's buffer
                in the forward, and saves a tensor of the weight's size.
        """
        hidden_sbh = self._hidden(inputs)
        if want == "hidden":
            return hidden_sbh
        return self.head(hidden_sbh, inputs, want, z_loss, candidates, known_scale)

    def _hidden(self, inputs: Inputs) -> Tensor:
        return self.block(
            self.embedding(inputs.tokens_bs, inputs.positions_bs),
            attention_mask=None,
            rotary_pos_emb=self._rotary(inputs.positions_bs),
            packed_seq_params=inputs.layout,
        )

    def _rotary(self, positions_bs: Tensor) -> Tensor:
        """Of our layers [2, s, b, 1, d], cosines and sines; of Megatron's [s, b, 1, d], angles."""
        dim = self.config.kv_channels
        exponents = torch.arange(0, dim, 2, device=positions_bs.device, dtype=torch.float32) / dim
        angles_sbd = positions_bs.T[..., None] * self.rope_base**-exponents
        angles_sb1d = torch.cat([angles_sbd, angles_sbd], dim=-1)[:, :, None]
        if not self.turned_by_layers:
            return angles_sb1d
        return torch.stack([angles_sb1d.cos(), angles_sb1d.sin()]).to(self.config.params_dtype)

    def set_input_tensor(self, input_tensor: Any) -> None:
        """Megatron's schedules hand every model its pipeline input; there is no pipeline here."""


def build_decoder(
    model: ModelConfig,
    parallel: ParallelConfig | None = None,
    *,
    seed: int | None = 0,
    bf16: bool = False,
    recompute: Recompute = "none",
    backend: BackendConfig | None = None,
    into_main_grad: bool = False,
) -> Decoder:
    """Build this rank's share of a decoder and draw its weights.

    Args:
        recompute: of the recipe.
        into_main_grad: see `transformer_config`.
        seed: of the weights; None leaves them undrawn, for a checkpoint to fill.
    """
    config = transformer_config(
        model,
        parallel,
        bf16=bf16,
        recompute=recompute,
        into_main_grad=into_main_grad,
        fp8=backend.fp8 if backend else "none",
    )
    decoder = Decoder(
        config, model.vocabulary(), model.rope_base, backend, recomputed_parts(recompute)
    )
    if seed is not None:
        initialize(decoder, model.vocabulary(), std=model.init_std, seed=seed)
    return decoder


def empty_decoder(
    model: ModelConfig,
    parallel: ParallelConfig | None = None,
    *,
    bf16: bool = False,
    backend: BackendConfig | None = None,
) -> Decoder:
    """This rank's share of a decoder on the meta device: names and shapes without data."""
    with torch.device("meta"):
        config = transformer_config(model, parallel, bf16=bf16, on_ambient_device=True)
        return Decoder(config, model.vocabulary(), model.rope_base, backend)


def view_for_inference(
    decoder: Decoder, model: ModelConfig, parallel: ParallelConfig, backend: BackendConfig
) -> Decoder:
    """A decoder over the very parameters of another, without dropout or sequence parallelism.

    Sequence parallel ranks divide the tokens of a call, and in generation there is but one.
    """
    bf16 = next(decoder.parameters()).dtype == torch.bfloat16
    without = parallel.model_copy(update={"sequence": False})
    view = empty_decoder(model, without, bf16=bf16, backend=backend)
    view.load_state_dict(decoder.state_dict(keep_vars=True), assign=True)
    return view.eval()


def count_parameters(model: ModelConfig) -> int:
    """Parameters of the decoder without padding rows, counted on the meta device."""
    vocabulary = model.vocabulary()
    padding = vocabulary.padded_size(1) - vocabulary.size
    return sum(p.numel() for p in empty_decoder(model).parameters()) - 2 * padding * model.hidden
