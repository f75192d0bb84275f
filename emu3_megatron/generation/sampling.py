"""Samples a token from logits: guidance, temperature, top-k, top-p."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from emu3_megatron.checkpoints.folders import saw_empty_captions
from emu3_megatron.errors import InputError


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn. The defaults are those of Emu3's published scripts.

    Attributes:
        guidance: scale of classifier-free guidance; 1 is none, and saves half of the work.
        temperature: 0 takes the likeliest token.
        top_k: draw among so many likeliest tokens; None among all.
        top_p: draw among the likeliest tokens that hold this much probability.
        seed: row i of a batch draws as it would alone with seed + i.

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


def guide(logits_bv: torch.Tensor, negative_bv: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance (Sanchez et al., arXiv 2306.17806), up to a constant of each row.

    The definition takes log_softmax of both first, over the whole vocabulary. Its normalisers shift
    all logits of a row alike, which no sampling sees; so neither they nor the columns of tokens
    that may not be drawn need to be computed.
    """
    return negative_bv + scale * (logits_bv - negative_bv)


def distribution(
    logits_bv: torch.Tensor, settings: SamplingSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is drawn from: probabilities [b, k], likeliest first, and their columns [b, k].

    Temperature acts before top-k, top-k before top-p. Needs a temperature above 0.
    """
    size = logits_bv.shape[-1]
    kept = min(settings.top_k or size, size)
    logits_bk, columns_bk = logits_bv.topk(kept)
    probabilities_bk = (logits_bk.double() / settings.temperature).softmax(-1)
    mass_before_bk = probabilities_bk.cumsum(-1) - probabilities_bk
    probabilities_bk = probabilities_bk.masked_fill(mass_before_bk >= settings.top_p, 0)
    return probabilities_bk / probabilities_bk.sum(-1, keepdim=True), columns_bk


def sample(
    logits_bv: torch.Tensor, uniforms_b: torch.Tensor, settings: SamplingSettings
) -> torch.Tensor:
    """Draw one column of each row, int64 [b].

    Args:
        logits_bv: float; v need not be the whole vocabulary.
        uniforms_b: float64 in [0, 1), the draws' only randomness: one number a row makes a row
            independent of its batch, and all tensor parallel ranks agree.
    """
    if settings.temperature == 0:
        return logits_bv.argmax(-1)
    probabilities_bk, columns_bk = distribution(logits_bv, settings)
    mass_bk = probabilities_bk.cumsum(-1)
    drawn_b1 = torch.searchsorted(mass_bk, uniforms_b[:, None] * mass_bk[:, -1:], right=True)
    return columns_bk.gather(-1, drawn_b1)[:, 0]
