"""Reads image and clip files as codes, to be shown to the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from emu3_megatron.errors import InputError
from emu3_megatron.generation.clips import encode_clip
from emu3_megatron.grammar import Vision
from emu3_megatron.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, suffix_of
from emu3_megatron.media.images import load_image, resize_to_area, resize_within, to_pixels
from emu3_megatron.media.videos import read_overview
from emu3_megatron.vision.tokenizer import SPATIAL_FACTOR, TEMPORAL_FACTOR, VisionTokenizer


@dataclass(frozen=True)
class Sizes:
    """At which sizes files are shown; the defaults are those of Emu3's image processor.

    Attributes:
        least, most: pixels of an image; others are resized, their aspect kept.
        clip: pixels of a frame of a clip.
        fps: frames a second that a clip is read at; fewer where it would have more than `frames`.
    """

    least: int = 512 * 512
    most: int = 1024 * 1024
    clip: int = 512 * 512
    fps: float = 4.0
    frames: int = 32

    @classmethod
    def of(cls, area: int | None, fps: float, frames: int) -> "Sizes":
        """Images and frames at about so many pixels, or as by default."""
        if area is None:
            return cls(fps=fps, frames=frames)
        return cls(area, area, area, fps, frames)


def default_area(about: Mapping[str, Any]) -> int | None:
    """Pixels of the commonest grid of the training data, if a checkpoint's manifest names it."""
    grid = about.get("grid")
    return SPATIAL_FACTOR**2 * grid[0] * grid[1] if grid else None


def is_clip(path: Path) -> bool:
    """Whether a file is a clip by its name; raises InputError when it is no image either."""
    suffix = suffix_of(path)
    if suffix not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        known = ", ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
        raise InputError(f"{path}: neither an image nor a video by its name; known: {known}")
    return suffix in VIDEO_SUFFIXES


def read_vision(tokenizer: VisionTokenizer, path: Path, sizes: Sizes) -> Vision:
    """The codes of an image file or a video file.

    Raises:
        InputError: naming the file, when it cannot be read, is too narrow or too short.
    """
    if is_clip(path):
        return _read_clip(tokenizer, path, sizes)
    return vision_of(tokenizer, load_image(path), sizes)


def vision_of(tokenizer: VisionTokenizer, image: Image.Image, sizes: Sizes) -> Vision:
    """The codes of an image, resized."""
    if sizes.least == sizes.most:
        image = resize_to_area(image, sizes.least)
    else:
        image = resize_within(image, sizes.least, sizes.most)
    pixels_1chw = to_pixels(image)[None].to(next(tokenizer.parameters()).device)
    return Vision.image(tokenizer.encode_images(pixels_1chw)[0].cpu().numpy())


def _read_clip(tokenizer: VisionTokenizer, path: Path, sizes: Sizes) -> Vision:
    pixels_tchw, fps = read_overview(path, area=sizes.clip, fps=sizes.fps, max_frames=sizes.frames)
    if len(pixels_tchw) < TEMPORAL_FACTOR:
        raise InputError(f"{path}: {len(pixels_tchw)} frames at {fps:g} a second, too short")
    return encode_clip(tokenizer, pixels_tchw, fps)
