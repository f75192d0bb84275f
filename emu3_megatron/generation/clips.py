"""Draws clips from captions, and continues clips step by step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from emu3_megatron.errors import InputError
from emu3_megatron.generation.images import VisionPrompt, Watch, draw
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta
from emu3_megatron.media.writers import write_clip
from emu3_megatron.model import Decoder
from emu3_megatron.parallel.votes import on_first_rank
from emu3_megatron.vision.tokenizer import SPATIAL_FACTOR, TEMPORAL_FACTOR, VisionTokenizer
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
class Clip:
    """A clip in pixels.

    Attributes:
        pixels_tchw: float in [-1, 1], on the CPU.
        fps: frames a second.
    """

    pixels_tchw: Tensor
    fps: float

    @property
    def meta(self) -> Meta:
        """The grid on which its whole latent frames are encoded."""
        frames, _, height, width = self.pixels_tchw.shape
        grid = (height // SPATIAL_FACTOR, width // SPATIAL_FACTOR)
        seconds = round(frames / self.fps, 3)
        return Meta(*grid, frames // TEMPORAL_FACTOR, self.fps, seconds)


@dataclass(frozen=True)
class Continuation:
    """How a clip goes on.

    The last seconds of what is there are encoded as a clip of their own, and the model draws the
    rest of one that is `more` seconds longer.

    Attributes:
        seen, more: seconds.
    """

    seen: float = SEEN_SECONDS
    more: float = MORE_SECONDS

    def window(self, clip: Clip | Meta, step: int = 0) -> tuple[Meta, int]:
        """The grid of the clip that is drawn, and how many latent frames of it are seen.

        Args:
            clip: what is there, or the grid that it was drawn on.
            step: how often it was continued before.

        Raises:
            InputError: it has fewer than four frames.
        """
        meta = clip if isinstance(clip, Meta) else clip.meta
        if not meta.frames:
            raise InputError(f"a clip of fewer than {TEMPORAL_FACTOR} frames: too short to go on")
        fps = fps_of(meta)
        more = latent_frames(self.more, fps)
        seen = min(latent_frames(self.seen, fps), meta.frames + step * more)
        seconds = (seen + more) * TEMPORAL_FACTOR / fps
        return clip_meta(meta.height, meta.width, seconds, fps), seen


def decode_clip(tokenizer: VisionTokenizer, codes_fhw: np.ndarray, fps: float) -> Clip:
    """Pixels of codes [f, h, w], four frames of each latent one."""
    device = next(tokenizer.parameters()).device
    codes_1fhw = torch.from_numpy(codes_fhw)[None].to(device)
    return Clip(tokenizer.decode_clips(codes_1fhw)[0].float().cpu(), fps)


def continue_clips(
    decoder: Decoder,
    vocabulary: Vocabulary,
    tokenizer: VisionTokenizer,
    clips: Sequence[Clip],
    captions: Sequence[str],
    settings: SamplingSettings,
    how: Continuation | None = None,
    *,
    negatives: Sequence[str] | None = None,
    watch: Watch | None = None,
) -> list[Clip]:
    """The clips with one step more each, all in one batch; their frames so far stay as they are.

    Clip i goes on with `settings.seed + i`. Tensor parallel ranks call this alike; the first
    encodes and decodes.
    """
    how = how or Continuation()
    prompts = [
        _prompt(tokenizer, clip, caption, negative, how)
        for clip, caption, negative in zip(
            clips, captions, negatives or [""] * len(clips), strict=True
        )
    ]
    drawn = draw(decoder, vocabulary, prompts, settings, watch=watch)
    return [
        _longer(tokenizer, clip, codes_fhw, how.window(clip)[1])
        for clip, codes_fhw in zip(clips, drawn, strict=True)
    ]


def _prompt(
    tokenizer: VisionTokenizer, clip: Clip, caption: str, negative: str, how: Continuation
) -> VisionPrompt:
    meta, seen = how.window(clip)
    last_tchw = clip.pixels_tchw[-seen * TEMPORAL_FACTOR :]
    codes_fhw = on_first_rank(lambda: _encode(tokenizer, last_tchw))
    return VisionPrompt(caption, meta, negative, codes_fhw)


def _encode(tokenizer: VisionTokenizer, pixels_tchw: Tensor) -> np.ndarray:
    device = next(tokenizer.parameters()).device
    return tokenizer.encode_clips(pixels_tchw[None].to(device))[0].cpu().numpy()


def _longer(tokenizer: VisionTokenizer, clip: Clip, codes_fhw: np.ndarray, seen: int) -> Clip:
    """The clip with what was drawn behind it, decoded together with what the model saw."""
    decoded = on_first_rank(lambda: decode_clip(tokenizer, codes_fhw, clip.fps).pixels_tchw)
    return Clip(torch.cat([clip.pixels_tchw, decoded[seen * TEMPORAL_FACTOR :]]), clip.fps)


def save_clip(clip: Clip, path: str | Path) -> None:
    """Write an .mp4 or a .gif, by the path's suffix."""
    write_clip(path, clip.pixels_tchw, clip.fps)
