"""How far weights in 8 bits agree with the full ones about images that the full ones draw."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from emu3_megatron.generation.forward import DecodeForward
from emu3_megatron.generation.images import VisionPrompt, draw
from emu3_megatron.generation.pool import PREFILL, KVPool
from emu3_megatron.generation.raster import Choice, Raster
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.generation.weights import DecodeWeights
from emu3_megatron.grammar import vision_prompt, vision_span
from emu3_megatron.model import Decoder
from emu3_megatron.vocabulary import Vocabulary

_AT_ONCE = 256  # codes whose logits are held


@dataclass(frozen=True)
class Agreement:
    """What both say at each code of one image, after the same tokens.

    Attributes:
        is_equal: whether the likeliest code is the same, bool [codes].
        kl: of the full weights' distribution over codes from that in 8 bits, in nats, [codes].
    """

    is_equal: np.ndarray
    kl: np.ndarray

    @property
    def first_difference(self) -> int | None:
        """Up to which code both draw the same greedily; None: all of them."""
        different = np.flatnonzero(~self.is_equal)
        return int(different[0]) if len(different) else None

    def __str__(self) -> str:
        first = self.first_difference
        return (
            f"{self.is_equal.mean():.2%} of {len(self.kl):,} likeliest codes equal, "
            + ("no difference" if first is None else f"first difference at code {first:,}")
            + f", KL {self.kl.mean():.2e} nats a code, at most {self.kl.max():.2e}"
        )


def joined(images: Sequence[Agreement]) -> Agreement:
    """Of several images, one behind the other."""
    return Agreement(
        np.concatenate([image.is_equal for image in images]),
        np.concatenate([image.kl for image in images]),
    )


def compare_eight_bits(
    decoder: Decoder, vocabulary: Vocabulary, prompts: Sequence[VisionPrompt]
) -> list[Agreement]:
    """Draw each image or clip greedily without guidance, and read it by both kinds of weights."""
    settings = SamplingSettings(guidance=1.0, temperature=0)
    drawn = draw(decoder, vocabulary, prompts, settings)
    full = DecodeWeights.of(decoder)
    kinds = full, full.in_eight_bits()
    return [
        _compare(kinds, vocabulary, _sequence(vocabulary, prompt, codes_fhw))
        for prompt, codes_fhw in zip(prompts, drawn, strict=True)
    ]


def _sequence(vocabulary: Vocabulary, prompt: VisionPrompt, codes_fhw: np.ndarray) -> np.ndarray:
    """The prompt, and what was drawn behind it up to its last code at least."""
    span = vision_span(vocabulary, prompt.meta, codes_fhw)
    begin = vision_prompt(vocabulary, prompt.caption, prompt.meta)
    return np.append(begin, span[-prompt.meta.num_tokens - 1 :])


@torch.inference_mode()
def _compare(
    kinds: tuple[DecodeWeights, DecodeWeights],
    vocabulary: Vocabulary,
    tokens: np.ndarray,
) -> Agreement:
    places_c = _places(vocabulary, tokens)
    forwards = [DecodeForward(weights, KVPool(weights, 1, len(tokens))) for weights in kinds]
    hidden_kch = [_states(forward, tokens)[places_c] for forward in forwards]
    is_equal, kl = [], []
    for begin in range(0, len(places_c), _AT_ONCE):
        full_cv, ours_cv = (
            forward.logits(
                hidden_ch[begin : begin + _AT_ONCE], vocabulary.first_code, vocabulary.size
            )
            .double()
            .log_softmax(-1)
            for forward, hidden_ch in zip(forwards, hidden_kch, strict=True)
        )
        is_equal.append(full_cv.argmax(-1) == ours_cv.argmax(-1))
        kl.append((full_cv.exp() * (full_cv - ours_cv)).sum(-1))
    return Agreement(torch.cat(is_equal).cpu().numpy(), torch.cat(kl).cpu().numpy())


def _places(vocabulary: Vocabulary, tokens: np.ndarray) -> list[int]:
    """Behind which tokens a code is drawn."""
    raster, places = Raster(vocabulary), []
    for place, token in enumerate(tokens.tolist()):
        raster.feed(token)
        if raster.allowed is Choice.CODE:
            places.append(place)
    return places


def _states(forward: DecodeForward, tokens: np.ndarray) -> Tensor:
    """Behind each token, [tokens, h]."""
    device = forward.weights.device
    tokens_1t = torch.from_numpy(tokens).long().to(device)[None]
    positions_1t = torch.arange(len(tokens), device=device)[None]
    pieces = [
        forward(
            tokens_1t[:, begin : begin + PREFILL],
            positions_1t[:, begin : begin + PREFILL],
            0,
            longest=min(begin + PREFILL, len(tokens)),
        )
        for begin in range(0, len(tokens), PREFILL)
    ]
    return torch.cat(pieces, 1)[0]
