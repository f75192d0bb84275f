"""Draws tokens from logits: guidance, temperature, top-k, top-p, keyed noise."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emu3_megatron.checkpoints.folders import saw_empty_captions
from emu3_megatron.errors import InputError
from emu3_megatron.generation.noise import gumbel


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn. The defaults are those of Emu3's published scripts.

    Attributes:
        guidance: scale of classifier-free guidance; 1 is none, and saves half of the work.
        temperature: 0 takes the likeliest token.
        top_k: draw among so many likeliest tokens; None among all.
        top_p: draw among the likeliest tokens that hold this much probability.
        seed: decides the noise of the draws, with a token's id and its place in what is said; row i
            of a batch draws as it would alone with seed + i.

    Raises:
        InputError: a value makes no sense.
    """

    guidance: float = 3.0
    temperature: float = 1.0
    top_k: int | None = 2048
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.guidance < math.inf:
            raise InputError(f"guidance={self.guidance}: give 1 (none) or more, 3 say")
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature={self.temperature}: give 0 (the likeliest) or more")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k={self.top_k}: give 1 or more, or none for all tokens")
        if not 0 <= self.seed < 1 << 63:
            raise InputError(f"seed={self.seed}: give 0 or more, less than 2^63")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p}: give more than 0, at most 1")


def default_guidance(about: Mapping[str, Any]) -> float:
    """The guidance where none is given: that of the recipe's `sample`, if it says one.

    Else Emu3's 3, or none if the weights never saw an empty caption.

    Args:
        about: what the checkpoint's manifest says, or the run's.
    """
    sample = about.get("recipe", {}).get("sample") or {}
    if sample.get("guidance") is not None:
        return sample["guidance"]
    return 1.0 if saw_empty_captions(about) is False else 3.0


def warn_of_guidance(guidance: float, about: Mapping[str, Any]) -> None:
    """One line on stderr where guidance leads away from what the weights never learned."""
    if guidance != 1 and saw_empty_captions(about) is False:
        print(
            f"guidance={guidance:g}: these weights were never trained without captions "
            "(data.null_prompt), so guidance makes images worse; set it to 1",
            file=sys.stderr,
        )


def guide(logits_bv: Tensor, negative_bv: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance (Sanchez et al., arXiv 2306.17806), up to a constant of each row.

    The definition takes log_softmax of both first, over the whole vocabulary. Its normalisers shift
    all logits of a row alike, which no sampling sees; so neither they nor the columns of tokens
    that may not be drawn need to be computed.

    Args:
        scale: of all rows, or of each, [b, 1].
    """
    return negative_bv + scale * (logits_bv - negative_bv)


class Sampler:
    """Draws a token for each row of a batch, by the row's own settings.

    Args:
        settings: of each row.
    """

    def __init__(self, settings: Sequence[SamplingSettings], device: torch.device):
        column = lambda values: torch.tensor(values, device=device)[:, None]
        self.guidance_b1 = column([row.guidance for row in settings])
        self.is_greedy_b1 = column([row.temperature == 0 for row in settings])
        self.temperature_b1 = column([row.temperature or 1.0 for row in settings])
        self.top_k_b1 = column([row.top_k or sys.maxsize for row in settings])
        self.top_p_b1 = column([row.top_p for row in settings])
        self.all_greedy = all(row.temperature == 0 for row in settings)
        self.any_greedy = any(row.temperature == 0 for row in settings)
        self.largest_k = max(row.top_k or sys.maxsize for row in settings)
        self.smallest_k = min(row.top_k or sys.maxsize for row in settings)
        self.any_top_p = any(row.top_p < 1 for row in settings)

    def draw(self, logits_bv: Tensor, ids_v: Tensor, keys: Sequence[tuple[int, int]]) -> Tensor:
        """One token a row, int64 [b].

        Args:
            logits_bv: float32.
            ids_v: tokens of the columns, ascending.
            keys: of each row's noise, from `noise_key`.
        """
        if self.all_greedy:
            return ids_v[logits_bv.argmax(-1)]
        scores_bk, columns_bk = self.scores(logits_bv)
        ids = ids_v if columns_bk is None else ids_v[columns_bk]
        noisy_bk = scores_bk + gumbel(keys, ids)
        if self.any_greedy:
            noisy_bk = torch.where(self.is_greedy_b1, scores_bk, noisy_bk)
        drawn_b1 = noisy_bk.argmax(-1, keepdim=True)
        columns_b1 = drawn_b1 if columns_bk is None else columns_bk.gather(-1, drawn_b1)
        return ids_v[columns_b1[:, 0]]

    def scores(self, logits_bv: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is drawn from: logits over temperature, -inf where top-k or top-p leave a token out.

        Returns:
            Scores [b, k], and their columns [b, k], likeliest first; None where they are all of
            them in their own order.
        """
        # From the largest down, so that a temperature near 0 gives no infinities.
        scaled_bv = (logits_bv - logits_bv.amax(-1, keepdim=True)) / self.temperature_b1
        size = scaled_bv.shape[-1]
        if self.smallest_k >= size and not self.any_top_p:
            return scaled_bv, None
        scores_bk, columns_bk = scaled_bv.topk(min(self.largest_k, size))
        places_k = torch.arange(scores_bk.shape[-1], device=scores_bk.device)
        scores_bk = scores_bk.masked_fill(places_k >= self.top_k_b1, -math.inf)
        if self.any_top_p:
            probabilities_bk = scores_bk.double().softmax(-1)
            before_bk = probabilities_bk.cumsum(-1) - probabilities_bk
            scores_bk = scores_bk.masked_fill(before_bk >= self.top_p_b1, -math.inf)
        return scores_bk, columns_bk
