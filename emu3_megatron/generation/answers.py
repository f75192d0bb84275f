"""Describes images and clips, and answers questions about them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from emu3_megatron.generation.generator import generate
from emu3_megatron.generation.jobs import Request
from emu3_megatron.generation.options import PLAIN, EngineOptions
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Turn, Vision, dialogue, open_prompt
from emu3_megatron.model import Decoder
from emu3_megatron.vocabulary import SYSTEM_TEXT, Vocabulary

MAX_TOKENS = 512  # of an answer


def describe(
    decoder: Decoder,
    vocabulary: Vocabulary,
    shown: Sequence[Vision],
    settings: SamplingSettings,
    *,
    max_tokens: int = MAX_TOKENS,
    progress: bool = False,
) -> list[str]:
    """A caption of each image or clip."""
    prompts = [open_prompt(vocabulary, [vision]) for vision in shown]
    return say(decoder, vocabulary, prompts, settings, max_tokens=max_tokens, progress=progress)


def answer(
    decoder: Decoder,
    vocabulary: Vocabulary,
    dialogues: Sequence[Sequence[Turn]],
    settings: SamplingSettings,
    *,
    systems: Sequence[str | None] | None = None,
    max_tokens: int = MAX_TOKENS,
    progress: bool = False,
) -> list[str]:
    """The answer to the last question of each dialogue, whose last turn has none yet.

    Args:
        systems: of each dialogue, what stands in the place of Emu3's system text.
    """
    prompts = [
        dialogue(vocabulary, turns, system or SYSTEM_TEXT).tokens
        for turns, system in zip(dialogues, systems or [None] * len(dialogues), strict=True)
    ]
    return say(decoder, vocabulary, prompts, settings, max_tokens=max_tokens, progress=progress)


def say(
    decoder: Decoder,
    vocabulary: Vocabulary,
    prompts: Sequence[np.ndarray],
    settings: SamplingSettings,
    *,
    max_tokens: int = MAX_TOKENS,
    progress: bool = False,
    options: EngineOptions = PLAIN,
) -> list[str]:
    """Text after each prompt, up to EOS or to where an image would begin; there is no guidance.

    Args:
        prompts: tokens, as `grammar.open_prompt` and `grammar.dialogue` lay them out.
        progress, options: see `generate`.
    """
    stop = (vocabulary.eos, vocabulary.vision_start)
    said = generate(
        decoder,
        vocabulary,
        [Request(prompt, stop=stop) for prompt in prompts],
        replace(settings, guidance=1.0),
        max_tokens=max_tokens,
        progress=progress,
        options=options,
    )
    return [vocabulary.decode(tokens) for tokens in said]
