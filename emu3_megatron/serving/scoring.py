"""Log-probabilities of given tokens over the whole vocabulary."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from emu3_megatron.generation.forward import DecodeForward
from emu3_megatron.model import Decoder
from emu3_megatron.model.inputs import Inputs
from emu3_megatron.model.layout import SequenceLayout

_AT_ONCE = 256  # tokens whose logits are there at the same time


@dataclass(frozen=True)
class Scores:
    """Of a sequence of n tokens; what stands at 0 is of its second token.

    Attributes:
        own: log-probability of each token, float64 [n - 1].
        top_ids, top: the likeliest tokens in its place and their log-probabilities, [n - 1, top].
    """

    own: np.ndarray
    top_ids: np.ndarray
    top: np.ndarray


class Scorer:
    """Reads whole sequences with the decoder. Tensor parallel ranks call it alike."""

    def __init__(self, decoder: Decoder, forward: DecodeForward, vocabulary_size: int):
        self._decoder = decoder
        self._forward = forward  # for its head
        self._size = vocabulary_size

    @torch.inference_mode()
    def __call__(self, tokens: np.ndarray, top: int) -> Scores:
        """Scores of all tokens but the first."""
        tokens_n = torch.from_numpy(tokens.astype(np.int64))
        hidden_nh = self._read(tokens_n[:-1])
        labels_n = tokens_n[1:].to(hidden_nh.device)
        pieces = [
            self._score(hidden_mh, labels_m, top)
            for hidden_mh, labels_m in zip(
                hidden_nh.split(_AT_ONCE), labels_n.split(_AT_ONCE), strict=True
            )
        ]
        own, ids, values = (torch.cat(part).cpu().numpy() for part in zip(*pieces, strict=True))
        return Scores(own, ids, values)

    def _read(self, tokens_n: Tensor) -> Tensor:
        """Hidden states [n, h] of tokens on the CPU."""
        layout = SequenceLayout.of_documents([[0, len(tokens_n)]])
        inputs = Inputs(tokens_n[None], torch.arange(len(tokens_n))[None], layout)
        hidden_n1h = self._decoder(inputs.to(self._forward.weights.device), "hidden")
        return hidden_n1h[:, 0]

    def _score(self, hidden_mh: Tensor, labels_m: Tensor, top: int) -> tuple[Tensor, ...]:
        logits_mv = self._forward.logits(hidden_mh, 0, self._size)
        if not logits_mv.isfinite().all():
            raise FloatingPointError("the decoder's logits are not finite")
        scores_mv = logits_mv.double().log_softmax(-1)
        values_mk, ids_mk = scores_mv.topk(top)
        return scores_mv.gather(-1, labels_m[:, None])[:, 0], ids_mk, values_mk
