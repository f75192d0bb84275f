"""The output head: hidden states to logits, log-probabilities, or the objective's sums."""

from typing import Any

import torch
from emu3_kernels.exchange import Exchange, GroupExchange, NoExchange
from emu3_kernels.linear_cross_entropy import (
    Backend,
    LinearCrossEntropy,
    TokenLogProbabilities,
    linear_cross_entropy,
    token_log_probabilities,
)
from emu3_kernels.linear_cross_entropy.backends import choose
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.utils import make_tp_sharded_tensor_for_checkpoint
from torch import Tensor

from emu3_megatron.errors import InputError
from emu3_megatron.model.inputs import Inputs
from emu3_megatron.parallel.groups import tensor_group
from emu3_megatron.vocabulary import CLASS_NAMES


class OutputHead(ColumnParallelLinear):
    """Untied head over the vocabulary, its rows divided among tensor parallel ranks.

    Args:
        vocab_size: ids; rows past it pad the ranks to equal shares and never enter the softmax.
        padded_size: rows over all ranks.
        loss_backend: of `linear_cross_entropy`; "unfused" is the check of the others.

    Raises:
        InputError: the backend cannot take weights of this type on this device.
    """

    def __init__(
        self,
        config: TransformerConfig,
        vocab_size: int,
        padded_size: int,
        loss_backend: Backend = "auto",
    ):
        super().__init__(
            config.hidden_size,
            padded_size,
            config=config,
            init_method=config.init_method,
            bias=False,
        )
        _check_backend(loss_backend, self.weight)
        self.vocab_size = vocab_size
        self.loss_backend = loss_backend

    def forward(  # type: ignore[override]
        self,
        hidden_sbh: Tensor,
        inputs: Inputs,
        want: str,
        z_loss: float = 0.0,
        candidates: int | None = None,
        known_scale: Tensor | None = None,
    ) -> Tensor | LinearCrossEntropy | TokenLogProbabilities:
        """What is wanted of this rank's tokens: see `Decoder.forward`.

        Megatron's hooks around a module, which gather its weights, run here as everywhere.

        Args:
            hidden_sbh: this rank's; the call gathers and scatters them in sequence parallel.
        """
        if want == "logits":
            return self._logits(hidden_sbh)
        assert inputs.labels_bs is not None, f"{want} needs labels"
        if want == "log_probabilities":
            return self._log_probabilities(hidden_sbh, inputs.labels_bs, inputs.kept)
        assert want == "sums", f"nothing is called {want}"
        return self._sums(hidden_sbh, inputs, z_loss, candidates, known_scale)

    def _sums(
        self,
        hidden_sbh: Tensor,
        inputs: Inputs,
        z_loss: float,
        candidates: int | None,
        known_scale: Tensor | None,
    ) -> LinearCrossEntropy:
        assert inputs.labels_bs is not None
        assert inputs.weights_bs is not None
        assert inputs.classes_bs is not None
        return linear_cross_entropy(
            hidden_sbh.flatten(0, 1),
            self._weight(),
            inputs.labels_bs.T.flatten(),
            inputs.weights_bs.T.flatten(),
            inputs.classes_bs.T.flatten(),
            vocab_size=candidates or self.vocab_size,
            num_classes=len(CLASS_NAMES),
            z_loss=z_loss,
            exchange=_vocabulary_exchange(self.sequence_parallel),
            backend=self.loss_backend,
            main_grad_vh=self._main_grad(),
            known_scale=known_scale,
            kept_k=inputs.kept,
        )

    def _log_probabilities(
        self, hidden_sbh: Tensor, labels_bs: Tensor, kept: Tensor | None
    ) -> TokenLogProbabilities:
        values = token_log_probabilities(
            hidden_sbh.flatten(0, 1),
            self._weight(),
            labels_bs.T.flatten(),
            vocab_size=self.vocab_size,
            exchange=_vocabulary_exchange(self.sequence_parallel),
            backend=self.loss_backend,
            main_grad_vh=self._main_grad(),
            kept_k=kept,
        )
        rows, length = labels_bs.shape
        return TokenLogProbabilities(*(value_n.view(length, rows).T for value_n in values))

    def _main_grad(self) -> torch.Tensor | None:
        """Megatron's buffer for the weight's gradient, where there is one to add to."""
        recording = torch.is_grad_enabled() and self.weight.requires_grad
        if not recording or self.loss_backend == "unfused":
            return None
        return getattr(self.weight, "main_grad", None)

    def _weight(self) -> Tensor:
        """The weight as everything that is wanted uses it, so that one loss may want several."""
        return self.weight if self._main_grad() is None else _AddedToMainGrad.apply(self.weight)

    def _logits(self, hidden_sbh: Tensor) -> Tensor:
        """Logits over the whole vocabulary, without padding: [b, s, vocab_size]."""
        logits_sbv = self._enter(hidden_sbh) @ self._weight().T
        logits_sbv = gather_from_tensor_model_parallel_region(logits_sbv)
        return logits_sbv[..., : self.vocab_size].transpose(0, 1)

    def _enter(self, hidden_sbh: Tensor) -> Tensor:
        """All of the rank's tokens; on the way back gradients are summed over vocabulary shares."""
        if self.sequence_parallel:
            return gather_from_sequence_parallel_region(hidden_sbh)
        return copy_to_tensor_model_parallel_region(hidden_sbh)

    def sharded_state_dict(  # type: ignore[override]
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """Another tensor parallel size pads to another number of rows: let the shapes differ."""
        key = f"{prefix}weight"
        sharded = make_tp_sharded_tensor_for_checkpoint(
            self.weight, key, allow_shape_mismatch=True, prepend_offsets=sharded_offsets
        )
        return {key: sharded}


class _AddedToMainGrad(torch.autograd.Function):
    """A weight whose gradient is added to its buffer; autograd gets a tensor of no meaning.

    The fused loss adds its own and gives none. Megatron's hook waits for a gradient to know that
    the buffer is ready to be reduced, and finds by the flag that it has nothing to add; each step
    begins by taking the flag back.
    """

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        ctx.weight = weight
        ctx.set_materialize_grads(False)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor | None) -> torch.Tensor:  # type: ignore[override]
        if gradient is not None:
            ctx.weight.main_grad.add_(gradient)
        ctx.weight.grad_added_to_main_grad = True
        return torch.empty_like(ctx.weight)


def _check_backend(backend: Backend, weight_vh: torch.Tensor) -> None:
    if backend == "unfused" or weight_vh.is_meta:  # of a decoder without data nothing is computed
        return
    try:
        choose(backend, weight_vh)
    except ValueError as error:
        raise InputError(f"backend.loss: {error}; or set backend.loss=auto") from error


def _vocabulary_exchange(tokens_divided: bool) -> Exchange:
    group = tensor_group()
    if group.size() == 1:
        return NoExchange()
    return GroupExchange(group, tokens_divided=tokens_divided)
