"""Reads any image file as an upright 8-bit RGB image; resizing, conversion to pixels and back."""

import contextlib
import io
import math
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from emu3_megatron.errors import InputError
from emu3_megatron.media.colour import by_profile, colour_note, to_srgb
from emu3_megatron.media.files import UnreadableError, reason_of

MAX_ASPECT = 5  # longer side over shorter; the published processor rejects beyond it
# Named, because Pillow would also open EPS, for which it starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM")
_TRANSPARENT = ("RGBA", "LA", "PA", "La", "RGBa")
# TIFF's tags, and what they say.
_BITS, _PHOTOMETRIC, _SAMPLES, _NO_DATA = 258, 262, 339, 42113
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
_LARGEST = 1e30  # beyond it a value stands for a missing one
# How an image is turned upright, by its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class DecodedImage:
    """An image as everybody sees it.

    Attributes:
        image: RGB of 8 bits in sRGB, upright.
        notes: what was done to it: `rotated`, `cmyk`, `deep`, `no data`, `alpha`, `icc`,
            `unusable icc`, `pq`, `hlg`, `wide gamut`, `first of 12`.
    """

    image: Image.Image
    notes: tuple[str, ...]


def decode_image(data: bytes, path: str | Path) -> DecodedImage:
    """Decode a file's content.

    The image is turned by its EXIF orientation; colours are converted to sRGB by the image's
    profile, HDR is tone-mapped, more than 8 bits are scaled to 8, transparency is laid over white,
    and an animation is represented by its first frame.

    Args:
        path: where the content is from, for the error.

    Raises:
        UnreadableError: not an image, or a damaged one.
    """
    try:
        # Warnings of damaged metadata name no file.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(data), formats=_formats(path)) as opened,
        ):
            return _decode(opened, data)
    except UnidentifiedImageError:
        raise UnreadableError(path, "not a readable image (unknown format)") from None
    except Exception as error:  # decoders raise whatever the damage leads them to
        raise UnreadableError(path, f"not a readable image ({reason_of(error)})") from None


def size_of(data: bytes, path: str | Path) -> tuple[int, int] | None:
    """Width and height by a file's header alone: a file of a few bytes may claim any size.

    Args:
        path: where the content is from, for the error.

    Returns:
        None where Pillow opens no image of so many pixels.

    Raises:
        UnreadableError: not an image.
    """
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(data), formats=_formats(path)) as opened,
        ):
            return opened.size
    except Image.DecompressionBombError:
        return None
    except Exception as error:
        raise UnreadableError(path, reason_of(error)) from None


def _formats(path: str | Path) -> tuple[str, ...]:
    """TGA is known by its name alone: nothing in its content says that it is one."""
    return ("TGA",) if str(path).lower().endswith(".tga") else FORMATS


def read_image(path: str | Path) -> DecodedImage:
    """Read and decode a file. Raises UnreadableError."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UnreadableError(path, f"cannot be read ({reason_of(error)})") from None
    return decode_image(data, path)


def load_image(path: str | Path) -> Image.Image:
    """The image of a file, for the tokenizer.

    Raises:
        InputError: naming the file, when it cannot be read or is narrower than 1:5.
    """
    image = read_image(path).image
    check_aspect(path, *image.size)
    return image


def check_aspect(path: str | Path, width: int, height: int) -> None:
    """Raises InputError when an image or a video, turned upright, is too narrow."""
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(f"{path}: {width}x{height} is narrower than 1:{MAX_ASPECT}")


def _decode(opened: Image.Image, data: bytes) -> DecodedImage:
    notes = []
    if (frames := getattr(opened, "n_frames", 1)) > 1:
        notes.append(f"first of {frames}")
    if _orientation(opened) in _TURNS:
        notes.append("rotated")
    opened.load()
    turn = _TURNS.get(_orientation(opened))  # asked again: Pillow turns a TIFF as it loads it
    image, more = _to_8_bits(opened)
    image, profiled = _in_srgb(image, opened, data)
    image, shown = _to_rgb(image)
    notes += [note for note in (*more, profiled, shown) if note]
    return DecodedImage(image if turn is None else image.transpose(turn), tuple(notes))


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata; the picture is kept as it is stored
        return 1


def _to_8_bits(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Grey of 8 bits of a deeper image, and notes; others stay."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image, []
    values, has_gaps = _known(_values_of(image), image)
    low, high = _range_of(values, image)
    scaled = (values - low) * (255 / max(high - low, 1e-6))
    if _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO:
        scaled = 255 - scaled
    grey = np.nan_to_num(scaled).clip(0, 255).round().astype(np.uint8)
    return Image.fromarray(grey), ["deep", *(["no data"] if has_gaps else [])]


def _values_of(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    if image.mode != "I":
        return values.astype(np.float32)
    if _tag(image, _BITS) == 32 and _tag(image, _SAMPLES) in (None, _UNSIGNED):
        values = values.view(np.uint32)  # Pillow has only signed ones
    return values.astype(np.float64)  # which holds every integer of 32 bits


def _known(values: np.ndarray, image: Image.Image) -> tuple[np.ndarray, bool]:
    """The values with NaN where there are none, and whether there are such gaps."""
    gaps = ~np.isfinite(values) | (abs(values) > _LARGEST)
    with contextlib.suppress(ValueError):
        gaps |= values == values.dtype.type(str(_tag(image, _NO_DATA)).strip("\0 "))
    if gaps.all():
        raise ValueError("no pixel has a value")
    return np.where(gaps, np.nan, values), bool(gaps.any())


def _range_of(values: np.ndarray, image: Image.Image) -> tuple[float, float]:
    """From black to white: what the bits can hold or are used for, else what is there."""
    if image.mode == "I" and image.format == "PPM":
        return 0, 65_535  # Pillow scales to them
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if image.mode.startswith("I;16"):
        return 0, 2 ** (_tag(image, _BITS) or 16) - 1
    for white in (1,) if image.mode == "F" else (255, 65_535, 2**32 - 1):
        if low >= 0 and high <= white:
            return 0, white
    return low, high


def _tag(image: Image.Image, number: int) -> Any:
    """The first value of a TIFF's tag; None where there is none."""
    value = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) else value


def _in_srgb(
    image: Image.Image, opened: Image.Image, data: bytes
) -> tuple[Image.Image, str | None]:
    """Convert by what the file says of its colours: by H.273's numbers, else by its profile."""
    primaries, transfer = _colours_of(data, opened.format)
    if note := colour_note(primaries, transfer):
        alpha = image.getchannel("A") if image.mode == "RGBA" else None
        converted = Image.fromarray(to_srgb(np.asarray(image.convert("RGB")), primaries, transfer))
        if alpha is not None:
            converted.putalpha(alpha)
        return converted, note
    profile = opened.info.get("icc_profile")
    if profile and (image.mode in ("P", "PA", "LA") or "transparency" in image.info):
        image = image.convert("RGBA")
    converted, note = by_profile(image, profile)
    return converted, note or ("cmyk" if image.mode == "CMYK" else None)


def _colours_of(data: bytes, kind: str | None) -> tuple[int, int]:
    """ColourPrimaries and TransferCharacteristics of H.273; 2 is unknown."""
    if kind == "PNG" and (at := data[:65_536].find(b"\0\0\0\4cICP")) >= 0:
        return data[at + 8], data[at + 9]
    if kind == "AVIF" and (at := data[:65_536].find(b"colrnclx")) >= 0:
        primaries, transfer = struct.unpack(">HH", data[at + 8 : at + 12])
        return primaries, transfer
    return 2, 2


def _to_rgb(image: Image.Image) -> tuple[Image.Image, str | None]:
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB"), "alpha"
    return image if image.mode == "RGB" else image.convert("RGB"), None  # which would copy it


def size_for_area(width: int, height: int, area: int) -> tuple[int, int]:
    """(width, height) of about `area` pixels: aspect kept, both divisible by 8."""
    scale = math.sqrt(area / (width * height))
    return max(8, round(width * scale / 8) * 8), max(8, round(height * scale / 8) * 8)


def size_within(width: int, height: int, least: int, most: int) -> tuple[int, int]:
    """(width, height) of `least` to `most` pixels, both divisible by 8, aspect kept.

    A picture that is within that range already is only rounded to sides divisible by 8
    (`smart_resize` in Emu3's image processor).
    """
    size = (8 * round(width / 8), 8 * round(height / 8))
    rounding: Callable[[float], int] = math.ceil
    area = size[0] * size[1]
    if least <= area <= most:
        return size
    if area > most:
        rounding = math.floor
    scale = math.sqrt((most if area > most else least) / (width * height))
    return max(8, 8 * rounding(width * scale / 8)), max(8, 8 * rounding(height * scale / 8))


def resize_within(image: Image.Image, least: int, most: int) -> Image.Image:
    """Bicubic resize as `size_within` says; the same image where it fits already."""
    size = size_within(*image.size, least, most)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def resize_to_area(image: Image.Image, area: int) -> Image.Image:
    """Bicubic resize to about `area` pixels: aspect kept, sides divisible by 8."""
    return image.resize(size_for_area(*image.size, area), Image.Resampling.BICUBIC)


def shrink(image: Image.Image, side: int) -> Image.Image:
    """The image with its shorter side reduced to `side`; smaller ones stay."""
    scale = side / min(image.size)
    if scale >= 1:
        return image
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, Image.Resampling.BILINEAR)


def to_pixels(image: Image.Image) -> Tensor:
    """Pixels [3, h, w], float32 in [-1, 1]."""
    values_hwc = torch.from_numpy(np.array(image.convert("RGB")))
    return scaled(values_hwc.permute(2, 0, 1))


def scaled(pixels: Tensor) -> Tensor:
    """Pixels as floats in [-1, 1]: of uint8 float32, others as they are."""
    if pixels.dtype != torch.uint8:
        return pixels
    white = torch.tensor(127.5, device=pixels.device)  # by a number a GPU would divide less exactly
    return pixels.float().div_(white).sub_(1)


def to_image(pixels_chw: Tensor) -> Image.Image:
    """The image of pixels [3, h, w]; what lies outside [-1, 1] is clipped."""
    values_chw = pixels_chw.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    return Image.fromarray(values_chw.byte().permute(1, 2, 0).cpu().numpy())
