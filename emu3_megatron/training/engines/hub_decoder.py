"""transformers' Emu3 as a decoder: it takes our inputs and answers all that objectives want."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from emu3_kernels.linear_cross_entropy import (
    Backend,
    LinearCrossEntropy,
    TokenLogProbabilities,
    linear_cross_entropy,
    token_log_probabilities,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from emu3_megatron.config import ModelConfig
from emu3_megatron.interchange.configs import decoder_config
from emu3_megatron.model import Inputs, SequenceLayout
from emu3_megatron.model.attention import attend
from emu3_megatron.vocabulary import CLASS_NAMES

if TYPE_CHECKING:
    from transformers import Emu3TextConfig

_ATTENTION = "emu3_documents"  # the name under which transformers knows our attention


class HubHead(torch.nn.Linear):
    """`lm_head`, which computes the loss without keeping logits.

    It is called as a module is, so that the hooks by which ZeRO 3 gathers its weight run.
    """

    def __init__(self, hidden: int, vocab_size: int, loss_backend: Backend):
        super().__init__(hidden, vocab_size, bias=False)
        self.loss_backend = loss_backend

    def forward(  # type: ignore[override]
        self, hidden_bsh: Tensor, inputs: Inputs, want: str, z_loss: float, candidates: int | None
    ) -> Tensor | LinearCrossEntropy | TokenLogProbabilities:
        """See `HubDecoder.forward`."""
        if want == "logits":
            return super().forward(hidden_bsh)
        assert inputs.labels_bs is not None, f"{want} needs labels"
        if want == "log_probabilities":
            return self._log_probabilities(hidden_bsh, inputs)
        assert want == "sums", f"nothing is called {want}"
        return self._sums(hidden_bsh, inputs, z_loss, candidates or self.out_features)

    def _sums(
        self, hidden_bsh: Tensor, inputs: Inputs, z_loss: float, candidates: int
    ) -> LinearCrossEntropy:
        assert inputs.labels_bs is not None
        assert inputs.weights_bs is not None
        assert inputs.classes_bs is not None
        return linear_cross_entropy(
            hidden_bsh.transpose(0, 1).flatten(0, 1),
            self.weight,
            inputs.labels_bs.T.flatten(),
            inputs.weights_bs.T.flatten(),
            inputs.classes_bs.T.flatten(),
            vocab_size=candidates,
            num_classes=len(CLASS_NAMES),
            z_loss=z_loss,
            backend=self.loss_backend,
            kept_k=inputs.kept,
        )

    def _log_probabilities(self, hidden_bsh: Tensor, inputs: Inputs) -> TokenLogProbabilities:
        assert inputs.labels_bs is not None
        rows, length = inputs.labels_bs.shape
        values = token_log_probabilities(
            hidden_bsh.transpose(0, 1).flatten(0, 1),
            self.weight,
            inputs.labels_bs.T.flatten(),
            vocab_size=self.out_features,
            backend=self.loss_backend,
            kept_k=inputs.kept,
        )
        return TokenLogProbabilities(*(value_n.view(length, rows).T for value_n in values))


class HubDecoder(torch.nn.Module):
    """transformers' text model and our head, with the tensor names of its Emu3ForCausalLM.

    Attention is ours: documents of a row do not see one another. Weights are not drawn.

    Args:
        recompute: the layers' activations in the backward pass.
    """

    def __init__(self, model: ModelConfig, loss_backend: Backend, recompute: bool = False):
        super().__init__()
        from transformers.models.emu3.modeling_emu3 import Emu3TextModel

        config = _text_config(model)
        with _without_drawing():
            self.model = Emu3TextModel(config)
            self.lm_head = HubHead(model.hidden, model.vocabulary().size, loss_backend)
        self.dropout = torch.nn.Dropout(model.dropout)
        layers: Any = self.model.layers
        for layer in layers if recompute else ():
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def reset_rotary(self, device: torch.device) -> None:
        """Compute the rotary frequencies in fp32, which ZeRO 3 rounds to the weights' dtype."""
        model: Any = self.model
        model.rotary_emb = type(model.rotary_emb)(model.config).to(device)

    def forward(
        self,
        inputs: Inputs,
        want: str = "logits",
        z_loss: float = 0.0,
        candidates: int | None = None,
        known_scale: Tensor | None = None,
    ) -> Tensor | LinearCrossEntropy | TokenLogProbabilities:
        """What is wanted of these tokens: see `model.Decoder.forward`.

        Autograd carries the head's gradient, so that a scale known beforehand is of no use.
        """
        # BAAI's model drops some of the embeddings, transformers' does not.
        embedded_bsh = self.dropout(self.model.embed_tokens(inputs.tokens_bs))
        hidden_bsh = self.model(
            inputs_embeds=embedded_bsh,
            position_ids=inputs.positions_bs,
            use_cache=False,
            layout=inputs.layout,
        ).last_hidden_state
        return self.lm_head(hidden_bsh, inputs, want, z_loss, candidates)


def _text_config(model: ModelConfig) -> "Emu3TextConfig":
    """The decoder as transformers describes it, with our attention."""
    from transformers import AttentionInterface, Emu3TextConfig

    AttentionInterface.register(_ATTENTION, _attend)
    # The number of positions is of no consequence: rotary embeddings know no end.
    values = decoder_config(model, torch.float32, 1, "transformers")
    config = Emu3TextConfig(**values)
    config._attn_implementation = _ATTENTION
    return config


def _attend(
    module: torch.nn.Module,
    query_bhsd: Tensor,
    key_bhsd: Tensor,
    value_bhsd: Tensor,
    attention_mask: None,
    *,
    dropout: float,
    layout: SequenceLayout,
    **ignored: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it; returns [b, s, heads * d]."""
    query, key, value = (t.permute(2, 0, 1, 3) for t in (query_bhsd, key_bhsd, value_bhsd))
    number = int(module.layer_idx) + 1  # type: ignore[arg-type]
    return attend(query, key, value, layout, number, dropout).transpose(0, 1), None


@contextmanager
def _without_drawing() -> Iterator[None]:
    """No initial weights: theirs fail on weights that ZeRO 3 has divided, and others follow."""
    from transformers.initialization import no_init_weights

    with no_init_weights():
        yield
