"""The output head: hidden states to logits, or straight to the objective's sums."""

from typing import Any

import torch
from emu3_kernels.exchange import Exchange, GroupExchange, NoExchange
from emu3_kernels.linear_cross_entropy import LinearCrossEntropy, linear_cross_entropy
from megatron.core import parallel_state
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.utils import make_tp_sharded_tensor_for_checkpoint


class OutputHead(ColumnParallelLinear):
    """Untied head over the vocabulary, its rows divided among tensor parallel ranks.

    Args:
        vocab_size: ids; rows past it pad the ranks to equal shares and never enter the softmax.
        padded_size: rows over all ranks.
    """

    def __init__(self, config: TransformerConfig, vocab_size: int, padded_size: int):
        super().__init__(
            config.hidden_size,
            padded_size,
            config=config,
            init_method=config.init_method,
            bias=False,
        )
        self.vocab_size = vocab_size

    def loss(
        self,
        hidden_sbh: torch.Tensor,
        labels_bs: torch.Tensor,
        weights_bs: torch.Tensor,
        classes_bs: torch.Tensor,
        z_loss: float,
    ) -> LinearCrossEntropy:
        """The objective's sums over this rank's tokens; see `linear_cross_entropy`."""
        # Tokens in the order of the hidden states: transposing those instead would hand Megatron's
        # all-reduce of their gradient a non-contiguous tensor, of which it reduces a copy.
        hidden_nh = self._enter(hidden_sbh).flatten(0, 1)
        return linear_cross_entropy(
            hidden_nh,
            self.weight,
            labels_bs.T.flatten(),
            weights_bs.T.flatten(),
            classes_bs.T.flatten(),
            vocab_size=self.vocab_size,
            z_loss=z_loss,
            exchange=_vocabulary_exchange(),
        )

    def logits(self, hidden_sbh: torch.Tensor) -> torch.Tensor:
        """Logits over the whole vocabulary, without padding: [b, s, vocab_size]."""
        logits_sbv = self._enter(hidden_sbh) @ self.weight.T
        logits_sbv = gather_from_tensor_model_parallel_region(logits_sbv)
        return logits_sbv[..., : self.vocab_size].transpose(0, 1)

    def _enter(self, hidden_sbh: torch.Tensor) -> torch.Tensor:
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


def _vocabulary_exchange() -> Exchange:
    group = parallel_state.get_tensor_model_parallel_group()
    return GroupExchange(group) if group.size() > 1 else NoExchange()
