"""Draws images, and clips beside them, from captions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from emu3_megatron.errors import InputError
from emu3_megatron.generation.generator import generate
from emu3_megatron.generation.jobs import Request
from emu3_megatron.generation.options import PLAIN, EngineOptions
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import (
    Meta,
    Vision,
    parse,
    vision_prompt,
    vision_span,
)
from emu3_megatron.media.images import to_image
from emu3_megatron.media.writers import write_png
from emu3_megatron.model import Decoder
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary

Watch = Callable[[Sequence[Sequence[int]]], None]
"""Is given the tokens said so far of each request, after each step of `generate`."""


@dataclass(frozen=True)
class VisionPrompt:
    """An image or a clip to draw.

    Attributes:
        caption: what it shows.
        meta: its grid; of a clip also rate and duration.
        negative: caption that guidance leads away from.
        first_frames: codes to go on from, int64 [frames so far, height, width].
    """

    caption: str
    meta: Meta
    negative: str = ""
    first_frames: np.ndarray | None = None

    def request(self, vocabulary: Vocabulary) -> Request:
        """Raises InputError when the first frames do not fit the grid."""
        seen = self._seen(vocabulary)
        begin = lambda caption: vision_prompt(vocabulary, caption, self.meta)
        return Request(
            np.append(begin(self.caption), seen),
            np.append(begin(self.negative), seen),
            stop=(vocabulary.vision_end,),
        )

    def _seen(self, vocabulary: Vocabulary) -> np.ndarray:
        """The tokens of the first frames, as they stand after IMG."""
        if self.first_frames is None:
            return np.array([], np.int32)
        frames = len(self.first_frames)
        if not 0 < frames < self.meta.frames:
            raise InputError(
                f"{frames} first frames: a {self.meta} clip goes on from fewer, from 1"
            )
        meta = Meta(self.meta.height, self.meta.width, frames, 1, frames)
        span = vision_span(vocabulary, meta, self.first_frames)
        return span[-meta.num_tokens - 1 : -1]


def draw(
    decoder: Decoder,
    vocabulary: Vocabulary,
    prompts: Sequence[VisionPrompt],
    settings: SamplingSettings,
    *,
    progress: bool = False,
    watch: Watch | None = None,
    options: EngineOptions = PLAIN,
) -> list[np.ndarray]:
    """Draw images and clips, of any grids, in one batch.

    Image i is drawn with `settings.seed + i`; `progress`, `watch` and `options` are
    those of `generate`.

    Returns:
        Codes of each, int64 [frames, height, width]; a clip begins with its first frames.

    Raises:
        InputError: first frames do not fit their grid; see also `generate`.
    """
    requests = [prompt.request(vocabulary) for prompt in prompts]
    longest = max((prompt.meta.num_tokens + 1 for prompt in prompts), default=0)
    drawn = generate(
        decoder,
        vocabulary,
        requests,
        settings,
        max_tokens=longest,
        progress=progress,
        watch=watch,
        options=options,
    )
    return [
        _codes(vocabulary, np.append(request.prompt, tokens))
        for request, tokens in zip(requests, drawn, strict=True)
    ]


def _codes(vocabulary: Vocabulary, tokens: np.ndarray) -> np.ndarray:
    vision = parse(vocabulary, tokens)[-1]
    assert isinstance(vision, Vision)
    return vision.codes


def generate_images(
    decoder: Decoder,
    vocabulary: Vocabulary,
    captions: Sequence[str],
    height: int,
    width: int,
    settings: SamplingSettings,
    *,
    progress: bool = False,
) -> np.ndarray:
    """Draw one image a caption, on grids of `height` x `width` codes (8 x 8 pixels each).

    Returns:
        Codes, int64 [captions, height, width].
    """
    prompts = [VisionPrompt(caption, Meta(height, width)) for caption in captions]
    codes_fhw = draw(decoder, vocabulary, prompts, settings, progress=progress)
    return np.concatenate(codes_fhw)


def save_image(tokenizer: VisionTokenizer, codes_hw: np.ndarray, path: str | Path) -> None:
    """Decode codes [height, width] and write them as a PNG of 8 x 8 pixels a code."""
    weight = next(tokenizer.parameters())
    codes_1hw = torch.from_numpy(codes_hw)[None].to(weight.device)
    write_png(path, to_image(tokenizer.decode_images(codes_1hw)[0]))
