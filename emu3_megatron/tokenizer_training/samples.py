"""Makes training samples from the photos and clips of a folder."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from emu3_megatron.config.tokenizer_training import TokenizerData
from emu3_megatron.errors import InputError
from emu3_megatron.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, find_files
from emu3_megatron.media.images import load_image, resize_to_area, to_pixels
from emu3_megatron.media.videos import read_clip, read_info

# Decoded photos, and pieces of clips, in memory: a small folder is decoded once.
_KEPT, _KEPT_PIECES = 256, 32
_SIZES = 3  # of a zoom, on either side of the plain one


@dataclass(frozen=True)
class Sample:
    """A photo or a piece of a clip, or why there is none.

    Attributes:
        index: of all samples of the run, from 0.
        pixels: [3, h, w] or [t, 3, h, w] in [-1, 1]; None where the file cannot be used.
        fault: why; it names the file.
    """

    index: int
    pixels: Tensor | None = None
    fault: str = ""


class Samples:
    """Photos, and clips among them, whole or cropped.

    What sample i is follows from the seed and i alone, whichever process reads it.

    Args:
        least_side: pixels a side under which a sample cannot be used: a narrow photo may have them.
    """

    def __init__(self, data: TokenizerData, seed: int, least_side: int = 1):
        self.data, self.seed, self.least_side = data, seed, least_side
        self.images = find_files(data.images, IMAGE_SUFFIXES)
        self.clips = find_files(data.clips, VIDEO_SUFFIXES) if data.clips else []

    @property
    def paths(self) -> list[Path]:
        """All files that there are."""
        return self.images + self.clips

    def content(self) -> str:
        """Hash of the files' names and sizes: by it a resumed run knows its data."""
        folders = ((self.data.images, self.images), (self.data.clips, self.clips))
        names = [
            f"{path.relative_to(folder)}\0{path.stat().st_size}"
            for folder, paths in folders
            if folder
            for path in paths
        ]
        return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:16]

    def read(self, index: int) -> Sample:
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        is_clip = bool(self.clips) and torch.rand((), generator=draw) < self.data.share_of_clips
        paths = self.clips if is_clip else self.images
        path = paths[_order(len(paths), self.seed, index // len(paths))[index % len(paths)]]
        area = self._area(draw)
        try:
            pixels = self._clip(path, area, draw) if is_clip else _image(path, area)
        except InputError as error:
            return Sample(index, fault=str(error))
        if min(pixels.shape[-2:]) < self.least_side:
            return Sample(index, fault=self._too_narrow(path))
        pixels = _crop(pixels.float().div(127.5).sub(1), self.data.crop, draw)
        if self.data.flip and torch.rand((), generator=draw) < 0.5:
            pixels = pixels.flip(-1)
        if torch.rand((), generator=draw) < self.data.recolour:
            pixels = _recoloured(pixels, draw)
        return Sample(index, pixels)

    def _too_narrow(self, path: Path) -> str:
        return (
            f"{path}: a side of under {self.least_side} pixels at data.area={self.data.area} "
            f"and data.zoom={self.data.zoom:g}, too few for the loss"
        )

    def _area(self, draw: torch.Generator) -> int:
        """A few sizes rather than any, so that decoded photos can be kept."""
        if self.data.zoom == 1:
            return self.data.area
        power = torch.randint(-_SIZES, _SIZES + 1, (), generator=draw).item() / _SIZES
        return round(self.data.area * self.data.zoom**power)

    def _clip(self, path: Path, area: int, draw: torch.Generator) -> Tensor:
        data = self.data
        last = read_info(path).last_frame_time
        frames = int(last * data.clip_fps + 0.01) + 1  # rounded times
        windows = max(1, frames // data.clip_frames)
        window = int(torch.randint(windows, (), generator=draw))
        return _window(path, area, data.clip_frames, data.clip_fps, window)


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator).tolist()


@lru_cache(maxsize=_KEPT)
def _image(path: Path, area: int) -> Tensor:
    return _bytes(path, to_pixels(resize_to_area(load_image(path), area)))


@lru_cache(maxsize=_KEPT_PIECES)
def _window(path: Path, area: int, frames: int, fps: float, window: int) -> Tensor:
    start = window * frames / fps
    pixels_tchw = read_clip(path, area=area, fps=fps, start=start, num_frames=frames)
    if len(pixels_tchw) < frames:
        raise InputError(f"{path}: fewer than {frames} frames from {start:g} seconds on")
    return _bytes(path, pixels_tchw)


def _bytes(path: Path, pixels: Tensor) -> Tensor:
    if not pixels.isfinite().all():
        raise InputError(f"{path}: holds pixels that are not finite")
    return pixels.add(1).mul(127.5).round().byte()  # a quarter of the memory to keep


def _recoloured(pixels: Tensor, draw: torch.Generator) -> Tensor:
    """Channels in another order, a third of the time as a negative; contrast and brightness."""
    order = torch.randperm(3, generator=draw)
    negative, contrast, brightness = torch.rand(3, generator=draw).tolist()
    sign = -1 if negative < 1 / 3 else 1
    changed = pixels.index_select(-3, order) * sign * (0.6 + 0.6 * contrast)
    return (changed + 0.6 * (brightness - 0.5)).clamp(-1, 1)


def _crop(pixels: Tensor, side: int | None, draw: torch.Generator) -> Tensor:
    """A random square; a picture that is smaller in a direction is kept whole in it."""
    for axis in (-2, -1):
        spare = pixels.shape[axis] - (side or pixels.shape[axis])
        if spare > 0:
            start = int(torch.randint(spare + 1, (), generator=draw))
            pixels = pixels.narrow(axis, start, pixels.shape[axis] - spare)
    return pixels
