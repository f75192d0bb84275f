"""Continues text and images: the model goes on writing, and draws where it begins an image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from emu3_megatron.files import replacing
from emu3_megatron.generation.clips import save_vision
from emu3_megatron.generation.generator import generate
from emu3_megatron.generation.jobs import Request
from emu3_megatron.generation.options import PLAIN, EngineOptions
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Vision, open_prompt, parse
from emu3_megatron.model import Decoder
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary


@dataclass(frozen=True)
class Interleaved:
    """What a model wrote and drew.

    Attributes:
        parts: texts, images and clips, in order.
        is_whole: whether it came to its end; an image that was not finished is left out.
    """

    parts: list[str | Vision]
    is_whole: bool


def continue_documents(
    decoder: Decoder,
    vocabulary: Vocabulary,
    documents: Sequence[Sequence[str | Vision]],
    settings: SamplingSettings,
    *,
    max_tokens: int,
    progress: bool = False,
    options: EngineOptions = PLAIN,
) -> list[Interleaved]:
    """What follows each document of texts, images and clips, up to EOS.

    There is no guidance. The model chooses the grid of each image that it begins.
    """
    requests = [Request(open_prompt(vocabulary, d), stop=(vocabulary.eos,)) for d in documents]
    said = generate(
        decoder,
        vocabulary,
        requests,
        replace(settings, guidance=1.0),
        max_tokens=max_tokens,
        progress=progress,
        options=options,
    )
    return [_take_apart(vocabulary, tokens) for tokens in said]


def _take_apart(vocabulary: Vocabulary, tokens: np.ndarray) -> Interleaved:
    whole = bool(len(tokens)) and tokens[-1] == vocabulary.eos
    begun = np.flatnonzero(tokens == vocabulary.vision_start)
    ended = np.flatnonzero(tokens == vocabulary.vision_end)
    if len(begun) > len(ended):
        tokens = tokens[: begun[-1]]
    return Interleaved(parse(vocabulary, tokens), bool(whole))


def write_markdown(tokenizer: VisionTokenizer, parts: Sequence[str | Vision], folder: Path) -> Path:
    """Write document.md, and beside it the images and clips as 1.png, 2.mp4 and so on."""
    text, drawn = "", 0
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        drawn += 1
        name = f"{drawn}.png" if part.meta.fps is None else f"{drawn}.mp4"
        save_vision(tokenizer, part, folder / name)
        text += f"\n\n![{part.meta}]({name})\n\n"
    path = folder / "document.md"
    with replacing(path) as beside:
        beside.write_text(text.strip() + "\n", encoding="utf-8")
    return path
