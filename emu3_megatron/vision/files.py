"""Reads files as pixels for the tokenizer, in batches of one shape."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, Self

import torch
from PIL import Image
from torch import Tensor

from emu3_megatron.errors import InputError
from emu3_megatron.media.files import VIDEO_SUFFIXES, suffix_of
from emu3_megatron.media.images import check_aspect, read_image, resize_to_area, to_pixels
from emu3_megatron.media.videos import clip_pixels, frames_at_rate, of_one_size, read_frames
from emu3_megatron.vision.tokenizer import SPATIAL_FACTOR, TEMPORAL_FACTOR

Kind = Literal["image", "clip"]


@dataclass(frozen=True)
class At:
    """How files are read.

    Attributes:
        area: about so many pixels an image or a frame, aspect kept, sides divisible by 8.
        fps: frames a second of clips.
        frames: of a clip the first ones; None: all.
        is_square: the middle square is cut out first.
    """

    area: int
    fps: float = 12.0
    frames: int | None = 8
    is_square: bool = False

    @classmethod
    def square(cls, side: int, fps: float = 12.0, frames: int | None = 8) -> Self:
        """Squares of a side. Raises InputError when 8 does not divide it, or it is none."""
        fitting = max(SPATIAL_FACTOR, side - side % SPATIAL_FACTOR)
        if side != fitting:
            raise InputError(
                f"--side {side}: must be divisible by {SPATIAL_FACTOR}, as {fitting} is"
            )
        return cls(side * side, fps, frames, is_square=True)

    def __str__(self) -> str:
        if self.is_square:
            side = round(self.area**0.5)
            return f"{side} x {side}"
        return f"about {self.area:,} pixels"


@dataclass(frozen=True)
class Batch:
    """Files of one shape.

    Attributes:
        pixels: [b, 3, h, w] of images, [b, t, 3, h, w] of clips; float32 in [-1, 1].
    """

    paths: Sequence[Path]
    pixels: Tensor

    @property
    def kind(self) -> Kind:
        return "clip" if self.pixels.dim() == 5 else "image"


@dataclass(frozen=True)
class Failed:
    """A file that cannot be used, and why."""

    path: Path
    reason: str


def kind_of(path: Path) -> Kind:
    return "clip" if suffix_of(path) in VIDEO_SUFFIXES else "image"


def batches(paths: Sequence[Path], at: At, size: int) -> Iterator[Batch | Failed]:
    """Files in batches of at most `size`; each file once, as a part of a batch or as failed."""
    waiting: dict[torch.Size, list[tuple[Path, Tensor]]] = defaultdict(list)
    for path in paths:
        try:
            pixels = read_pixels(path, at)
        except InputError as error:
            yield Failed(path, str(error).removeprefix(f"{path}: "))
            continue
        alike = waiting[pixels.shape]
        alike.append((path, pixels))
        if len(alike) == size:
            yield _stacked(waiting.pop(pixels.shape))
    yield from map(_stacked, waiting.values())


def _stacked(files: Sequence[tuple[Path, Tensor]]) -> Batch:
    return Batch([path for path, _ in files], torch.stack([pixels for _, pixels in files]))


def read_pixels(path: Path, at: At) -> Tensor:
    """Pixels [3, h, w] of an image, [t, 3, h, w] of a clip, with whole groups of 4 frames.

    Raises:
        InputError: naming the file, when it cannot be read, is too narrow or too short.
    """
    if kind_of(path) == "image":
        return to_pixels(resize_to_area(_framed(path, read_image(path).image, at), at.area))
    shown = of_one_size(islice(frames_at_rate(read_frames(path), at.fps, 0), at.frames))
    pixels_tchw = clip_pixels((_framed(path, frame.image(), at) for frame in shown), at.area)
    frames = len(pixels_tchw)
    if frames < TEMPORAL_FACTOR:
        raise InputError(
            f"{path}: {frames} frames at {at.fps:g} a second, a clip needs {TEMPORAL_FACTOR}"
        )
    return pixels_tchw[: frames - frames % TEMPORAL_FACTOR]


def _framed(path: Path, image: Image.Image, at: At) -> Image.Image:
    if not at.is_square:
        check_aspect(path, *image.size)
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
