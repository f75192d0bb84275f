"""Makes training samples from the photos and clips of a folder."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from emu3_megatron.config.tokenizer import TokenizerData
from emu3_megatron.errors import InputError
from emu3_megatron.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, find_files
from emu3_megatron.media.images import load_image, resize_to_area, to_pixels
from emu3_megatron.media.videos import read_clip, read_info

_KEPT = 256  # decoded photos and pieces of clips in memory: a small folder is decoded once


@dataclass(frozen=True)
class Broken:
    """Stands in a batch for a file that cannot be used."""

    path: Path
    reason: str


class Samples(Dataset[Tensor | Broken]):
    """Photos, and clips among them, whole or cropped.

    Item i is pixels [3, h, w] or [t, 3, h, w]; what it is follows from the seed and i alone, so
    that the number of worker processes changes nothing.
    """

    def __init__(self, data: TokenizerData, seed: int, length: int):
        self.data = data
        self.seed = seed
        self.length = length
        self.images = find_files(data.images, IMAGE_SUFFIXES)
        self.clips = find_files(data.clips, VIDEO_SUFFIXES) if data.clips else []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor | Broken:
        if not 0 <= index < self.length:
            raise IndexError(index)  # ends a for loop over the samples
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        clip = bool(self.clips) and torch.rand((), generator=draw).item() < self.data.clip_share
        paths = self.clips if clip else self.images
        path = paths[_order(len(paths), self.seed, index // len(paths))[index % len(paths)]]
        try:
            pixels = self._clip(path, draw) if clip else _image(path, self.data.area)
        except InputError as error:
            return Broken(path, str(error))
        return _crop(pixels.float().div(127.5).sub(1), self.data.crop, draw)

    def _clip(self, path: Path, draw: torch.Generator) -> Tensor:
        last = read_info(path).last_frame_time
        frames = int(last * self.data.clip_fps + 0.01) + 1  # rounded times
        windows = max(1, frames // self.data.clip_frames)
        window = int(torch.randint(windows, (), generator=draw))
        return _window(path, self.data.area, self.data.clip_frames, self.data.clip_fps, window)


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator).tolist()


@lru_cache(maxsize=_KEPT)
def _image(path: Path, area: int) -> Tensor:
    return _bytes(to_pixels(resize_to_area(load_image(path), area)))


@lru_cache(maxsize=_KEPT)
def _window(path: Path, area: int, frames: int, fps: float, window: int) -> Tensor:
    start = window * frames / fps
    pixels_tchw = read_clip(path, area=area, fps=fps, start=start, num_frames=frames)
    if len(pixels_tchw) < frames:
        raise InputError(f"{path}: fewer than {frames} frames from {start:g} seconds on")
    return _bytes(pixels_tchw)


def _bytes(pixels: Tensor) -> Tensor:
    return pixels.add(1).mul(127.5).round().byte()  # a quarter of the memory to keep


def _crop(pixels: Tensor, side: int | None, draw: torch.Generator) -> Tensor:
    """A random square; a picture that is smaller in a direction is kept whole in it."""
    for axis in (-2, -1):
        spare = pixels.shape[axis] - (side or pixels.shape[axis])
        if spare > 0:
            start = int(torch.randint(spare + 1, (), generator=draw))
            pixels = pixels.narrow(axis, start, pixels.shape[axis] - spare)
    return pixels
