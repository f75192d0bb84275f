"""How much of images and clips the vision tokenizer keeps: PSNR and SSIM, file by file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from emu3_megatron.errors import InputError
from emu3_megatron.evaluation.similarity import psnr_b, ssim_b
from emu3_megatron.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, find_files
from emu3_megatron.media.images import load_image, resize_to_area, to_pixels
from emu3_megatron.media.videos import read_clip
from emu3_megatron.vision.tokenizer import TEMPORAL_FACTOR, VisionTokenizer


@dataclass(frozen=True)
class Kept:
    """Measures of one file; of a clip the means over its frames.

    Attributes:
        size: pixels that it was measured at, height x width.
        frames: of a clip.
        codes: different ones among its codes.
    """

    path: Path
    size: tuple[int, int]
    frames: int
    codes: int
    psnr: float
    ssim: float


@dataclass(frozen=True)
class At:
    """How files are read; of clips as many frames as Emu3's paper takes.

    Attributes:
        area: about so many pixels an image or a frame.
        fps: frames a second of clips.
        frames: of a clip, the first ones.
    """

    area: int
    fps: float = 12.0
    frames: int = 8


def measure(tokenizer: VisionTokenizer, folder: Path, at: At) -> Iterator[Kept]:
    """Each image and clip of a folder, encoded and decoded.

    Raises:
        InputError: the folder holds none, or one that cannot be read, or is too short.
    """
    for path in find_files(folder, IMAGE_SUFFIXES | VIDEO_SUFFIXES):
        is_clip = path.suffix.lower() in VIDEO_SUFFIXES
        yield _of_clip(tokenizer, path, at) if is_clip else _of_image(tokenizer, path, at)


def _of_image(tokenizer: VisionTokenizer, path: Path, at: At) -> Kept:
    pixels_1chw = to_pixels(resize_to_area(load_image(path), at.area))[None]
    codes_1hw = tokenizer.encode_images(pixels_1chw.to(_device(tokenizer)))
    return _compare(path, pixels_1chw, tokenizer.decode_images(codes_1hw), codes_1hw)


def _of_clip(tokenizer: VisionTokenizer, path: Path, at: At) -> Kept:
    pixels_tchw = read_clip(path, area=at.area, fps=at.fps, num_frames=at.frames)
    frames = len(pixels_tchw) - len(pixels_tchw) % TEMPORAL_FACTOR
    if not frames:
        raise InputError(f"{path}: {len(pixels_tchw)} frames at {at.fps:g} a second, too short")
    pixels_tchw = pixels_tchw[:frames]
    codes_1fhw = tokenizer.encode_clips(pixels_tchw[None].to(_device(tokenizer)))
    return _compare(path, pixels_tchw, tokenizer.decode_clips(codes_1fhw)[0], codes_1fhw)


def _compare(path: Path, pixels: Tensor, rebuilt: Tensor, codes: Tensor) -> Kept:
    given, shown = ((x.float().cpu().clamp(-1, 1) + 1) / 2 for x in (pixels, rebuilt))
    return Kept(
        path,
        (given.shape[-2], given.shape[-1]),
        len(given),
        len(codes.unique()),
        psnr_b(given, shown).mean().item(),
        ssim_b(given, shown).mean().item(),
    )


def means(kept: Sequence[Kept]) -> dict[str, float]:
    """Over files, each counting once."""
    return {"PSNR": fmean(k.psnr for k in kept), "SSIM": fmean(k.ssim for k in kept)}


def _device(tokenizer: VisionTokenizer) -> torch.device:
    return next(tokenizer.parameters()).device
