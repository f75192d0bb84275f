"""Converts colours to sRGB: ICC profiles, HDR by PQ and HLG, and wide gamuts."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

# Numbers of ITU-T H.273, which videos, AVIF and PNG share.
PQ, HLG = 16, 18
_BT2020 = 9
_P3_TO_BT709 = [[1.2249, -0.2249, 0.0], [-0.0420, 1.0420, 0.0], [-0.0196, -0.0786, 1.0982]]
_TO_BT709 = {
    _BT2020: [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    11: _P3_TO_BT709,
    12: _P3_TO_BT709,
}
_WHITE = 203  # cd/m2 of white paper in HDR (ITU-R BT.2408)
_PEAK = 1000  # cd/m2 of the brightest white that is told apart from the next
_HLG_GAMMA = 1.2  # of a display of 1000 cd/m2 (ITU-R BT.2100)
_BAND = 256  # rows
_SAME = 2  # of 255: profiles closer than this to sRGB are left alone
_PROFILED_MODES = ("RGB", "RGBA", "L", "CMYK", "LAB")


def is_hdr(transfer: int) -> bool:
    return transfer in (PQ, HLG)


def colour_note(primaries: int, transfer: int) -> str | None:
    """What `to_srgb` converts from; None where the colours are as good as sRGB's."""
    if is_hdr(transfer):
        return "pq" if transfer == PQ else "hlg"
    return "wide gamut" if primaries in _TO_BT709 else None


def to_srgb(values_hwc: np.ndarray, primaries: int, transfer: int) -> np.ndarray:
    """Convert RGB of 8 or 16 bits to uint8 of sRGB.

    HDR is tone-mapped: what is darker than 3/4 of white paper keeps its brightness, highlights up
    to 1000 cd/m2 are compressed into the rest.

    Args:
        primaries: ColourPrimaries of H.273.
        transfer: TransferCharacteristics of H.273.
    """
    bands = range(0, len(values_hwc), _BAND)  # what is computed takes much memory
    return np.concatenate(
        [_band_to_srgb(values_hwc[first : first + _BAND], primaries, transfer) for first in bands]
    )


def _band_to_srgb(values_hwc: np.ndarray, primaries: int, transfer: int) -> np.ndarray:
    linear_hwc = _linear(np.iinfo(values_hwc.dtype).max, transfer)[values_hwc]
    if transfer == HLG:
        linear_hwc *= _luminance(linear_hwc, primaries)[..., None] ** (_HLG_GAMMA - 1)
    if is_hdr(transfer):
        linear_hwc = _tone_mapped(linear_hwc * np.float32(_PEAK / _WHITE))
    if primaries in _TO_BT709:
        linear_hwc = linear_hwc @ np.array(_TO_BT709[primaries], np.float32).T
    steps = np.clip(linear_hwc, 0, 1) * 65_535
    result: np.ndarray = _encoded()[(steps + 0.5).astype(np.uint16)]
    return result


@lru_cache(maxsize=8)
def _linear(most: int, transfer: int) -> np.ndarray:
    """Light of each value, 1 at the peak of HDR or at the white of SDR."""
    signal = np.arange(most + 1) / most
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
        power = signal ** (1 / m2)
        light = (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1) * 10_000 / _PEAK
    elif transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    else:  # as sRGB shows what cameras encode by BT.709
        light = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


@lru_cache(maxsize=1)
def _encoded() -> np.ndarray:
    """sRGB's 8 bits of light in 65,536 steps."""
    light = np.arange(65_536) / 65_535
    signal = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (255 * signal).round().astype(np.uint8)


def _luminance(linear_hwc: np.ndarray, primaries: int) -> np.ndarray:
    weights = (0.2627, 0.678, 0.0593) if primaries == _BT2020 else (0.2126, 0.7152, 0.0722)
    luminance: np.ndarray = linear_hwc @ np.array(weights, np.float32)
    return luminance


def _tone_mapped(linear_hwc: np.ndarray) -> np.ndarray:
    """Compress the brightest channel, and the others alike, so that no hue changes."""
    knee, peak = 0.75, _PEAK / _WHITE
    brightest = linear_hwc.max(-1, keepdims=True)
    above = np.maximum(brightest - knee, 0)
    # A hyperbola: slope 1 at the knee, and the peak becomes 1.
    bend = (peak - knee) * (1 - knee) / (peak - 1)
    mapped = np.where(brightest > knee, knee + above * bend / (above + bend), brightest)
    result: np.ndarray = linear_hwc * (mapped / np.maximum(brightest, 1e-6))
    return result


def by_profile(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str | None]:
    """Convert an image by its ICC profile.

    A profile that is as good as sRGB, or that cannot be used, changes nothing.

    Returns:
        The image, of mode RGB or RGBA where it was converted, and what was done.
    """
    if not profile:
        return image, None
    for mode in (image.mode, "RGB"):  # a grey image can carry a profile of colours
        if mode not in _PROFILED_MODES:
            continue
        same_mode = image if mode == image.mode else image.convert(mode)
        transform = _transform(profile, mode)
        if transform is not None:
            if mode in ("RGB", "RGBA") and _is_srgb(profile):
                return same_mode, None
            return ImageCms.applyTransform(same_mode, transform) or same_mode, "icc"
    return image, "unusable icc"


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        return ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGBA" if mode == "RGBA" else "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # damaged, or of another mode
        return None


@lru_cache(maxsize=16)
def _is_srgb(profile: bytes) -> bool:
    """Does the profile change no colour by more than can be seen?"""
    transform = _transform(profile, "RGB")
    assert transform is not None
    levels = np.linspace(0, 255, 17).astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(17, -1, 3)
    image = Image.fromarray(colours)
    changed = np.asarray(ImageCms.applyTransform(image, transform), int)
    return bool(abs(changed - colours).max() <= _SAME)
