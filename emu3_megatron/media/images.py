"""Photos to pixels and back."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from emu3_megatron.errors import InputError

MAX_ASPECT = 5  # longer side over shorter; the published processor rejects beyond it
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


def load_image(path: str | Path) -> Image.Image:
    """Read a photo as RGB, turned upright by its EXIF orientation.

    Raises:
        InputError: naming the file, when it cannot be read or is narrower than 1:5.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable image ({error})") from None
    check_aspect(path, *image.size)
    return image


def check_aspect(path: str | Path, width: int, height: int) -> None:
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(f"{path}: {width}x{height} is narrower than 1:{MAX_ASPECT}")


def size_for_area(width: int, height: int, area: int, multiple: int = 8) -> tuple[int, int]:
    """(width, height) of about `area` pixels: aspect kept, both divisible by `multiple`."""
    scale = math.sqrt(area / (width * height))
    return (
        max(multiple, round(width * scale / multiple) * multiple),
        max(multiple, round(height * scale / multiple) * multiple),
    )


def resize_to_area(image: Image.Image, area: int, multiple: int = 8) -> Image.Image:
    """Bicubic resize to about `area` pixels: aspect kept, sides divisible by `multiple`."""
    size = size_for_area(*image.size, area, multiple)
    return image.resize(size, Image.Resampling.BICUBIC)


def to_pixels(image: Image.Image) -> Tensor:
    """Pixels [3, h, w], float32 in [-1, 1]."""
    values_hwc = torch.from_numpy(np.array(image.convert("RGB")))
    return values_hwc.permute(2, 0, 1).float().div_(127.5).sub_(1)


def to_image(pixels_chw: Tensor) -> Image.Image:
    """The image of pixels [3, h, w]; what lies outside [-1, 1] is clipped."""
    values_chw = pixels_chw.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    return Image.fromarray(values_chw.byte().permute(1, 2, 0).cpu().numpy())
