"""Draws clips from captions, and continues clips step by step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from emu3_megatron.generation.images import VisionPrompt, Watch, draw, save_image
from emu3_megatron.generation.options import PLAIN, EngineOptions
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta, Vision
from emu3_megatron.media.writers import write_clip
from emu3_megatron.model import Decoder
from emu3_megatron.vision.tokenizer import TEMPORAL_FACTOR, VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary

# As Emu3 was trained, and as its paper continues clips.
SECONDS, FPS = 5.0, 24.0
SEEN_SECONDS, MORE_SECONDS = 2.0, 2.0


def clip_meta(height: int, width: int, seconds: float = SECONDS, fps: float = FPS) -> Meta:
    """The grid of a clip of about so many seconds, in whole latent frames of 4 frames each."""
    frames = latent_frames(seconds, fps)
    return Meta(height, width, frames, fps, round(frames * TEMPORAL_FACTOR / fps, 3))


def latent_frames(seconds: float, fps: float) -> int:
    return max(1, round(seconds * fps / TEMPORAL_FACTOR))


def fps_of(meta: Meta) -> float:
    assert meta.fps is not None, "an image"
    return meta.fps


@dataclass(frozen=True)
class Continuation:
    """How a clip goes on.

    The codes of its last seconds begin a clip that is `more` seconds longer, of which the model
    draws the rest. They are taken as they are: decoding and encoding them again would change many.

    Attributes:
        seen, more: seconds.
    """

    seen: float = SEEN_SECONDS
    more: float = MORE_SECONDS

    def window(self, clip: Meta, step: int = 0) -> tuple[Meta, int]:
        """The grid of the clip that is drawn, and how many latent frames of it are seen.

        Args:
            clip: the grid of what is there.
            step: how often it was continued since.
        """
        fps = fps_of(clip)
        more = latent_frames(self.more, fps)
        seen = min(latent_frames(self.seen, fps), clip.frames + step * more)
        return clip_meta(clip.height, clip.width, (seen + more) * TEMPORAL_FACTOR / fps, fps), seen


def continue_clips(
    decoder: Decoder,
    vocabulary: Vocabulary,
    clips: Sequence[Vision],
    captions: Sequence[str],
    settings: SamplingSettings,
    how: Continuation | None = None,
    *,
    negatives: Sequence[str] | None = None,
    watch: Watch | None = None,
    options: EngineOptions = PLAIN,
) -> list[Vision]:
    """The clips with one step more each, all in one batch.

    Clip i goes on with `settings.seed + i`.
    """
    how = how or Continuation()
    windows = [how.window(clip.meta) for clip in clips]
    negatives = negatives or [""] * len(clips)
    prompts = [
        VisionPrompt(caption, meta, negative, clip.codes[-seen:])
        for clip, caption, negative, (meta, seen) in zip(
            clips, captions, negatives, windows, strict=True
        )
    ]
    drawn = draw(decoder, vocabulary, prompts, settings, watch=watch, options=options)
    return [
        clip_of(np.concatenate([clip.codes, codes_fhw[seen:]]), fps_of(clip.meta))
        for clip, codes_fhw, (_, seen) in zip(clips, drawn, windows, strict=True)
    ]


def clip_of(codes_fhw: np.ndarray, fps: float) -> Vision:
    """Codes as a clip of frames at this rate."""
    return Vision.clip(codes_fhw, fps, round(len(codes_fhw) * TEMPORAL_FACTOR / fps, 3))


def encode_clip(tokenizer: VisionTokenizer, pixels_tchw: Tensor, fps: float) -> Vision:
    """A clip of pixels [t, 3, h, w]; frames after the last whole four are left out."""
    device = next(tokenizer.parameters()).device
    codes_1fhw = tokenizer.encode_clips(pixels_tchw[None].to(device))
    return clip_of(codes_1fhw[0].cpu().numpy(), fps)


def save_clip(
    tokenizer: VisionTokenizer, clip: Vision, path: str | Path, first_tchw: Tensor | None = None
) -> None:
    """Decode a clip in one call and write it as an .mp4 or a .gif, by the path's suffix.

    Args:
        first_tchw: frames with which it began, which are written as they are.
    """
    device = next(tokenizer.parameters()).device
    pixels_tchw = tokenizer.decode_clips(torch.from_numpy(clip.codes)[None].to(device))[0]
    if first_tchw is not None:
        given = len(first_tchw) // TEMPORAL_FACTOR * TEMPORAL_FACTOR
        pixels_tchw[:given] = first_tchw[:given].to(pixels_tchw)
    write_clip(path, pixels_tchw, fps_of(clip.meta))


def save_vision(tokenizer: VisionTokenizer, vision: Vision, path: str | Path) -> None:
    """Write an image as PNG, a clip as `save_clip` does."""
    if vision.meta.fps is None:
        save_image(tokenizer, vision.codes[0], path)
    else:
        save_clip(tokenizer, vision, path)
