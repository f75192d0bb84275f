"""Photos as they come from the wild: upright, eight bits, no transparency."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from emu3_megatron.errors import InputError

_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")


@dataclass(frozen=True)
class Photo:
    """A photo ready for scores and codes.

    Attributes:
        image: RGB, upright.
        notes: what had to be done to it, as `rotated`, `cmyk`, `deep`, `alpha`, `first of 12`.
    """

    image: Image.Image
    notes: tuple[str, ...]


def decode_photo(data: bytes) -> Photo:
    """Decode a file's content.

    EXIF rotation is applied, CMYK converted, 16 bits scaled to 8, transparency laid over white, and
    an animation represented by its first frame.

    Raises:
        InputError: not an image, or a truncated one.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            notes = []
            if (frames := getattr(opened, "n_frames", 1)) > 1:
                notes.append(f"first of {frames}")
            if opened.getexif().get(0x0112, 1) not in (0, 1):
                notes.append("rotated")
            upright = ImageOps.exif_transpose(opened)
            image, note = _to_rgb(upright)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"not a readable image ({_short(error)})") from None
    return Photo(image, tuple(notes + note))


def _short(error: Exception) -> str:
    text = str(error)
    return "unknown format" if "BytesIO" in text else text


def _to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    if image.mode in _DEEP:
        return _from_deep(image), ["deep"]
    if image.mode == "CMYK":
        return image.convert("RGB"), ["cmyk"]
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB"), ["alpha"]
    image.load()
    return image.convert("RGB"), []


def _from_deep(image: Image.Image) -> Image.Image:
    """More than 8 bits a pixel: 16-bit integers by their range, anything else by its own."""
    values = np.asarray(image, np.float32)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I"):
        low, high = 0.0, 65_535.0 if high > 255 else 255.0
    scaled = (values - low) * (255 / max(high - low, 1e-6))
    return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8)).convert("RGB")
