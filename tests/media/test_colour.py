"""Colours become sRGB's: by ICC profiles, HDR by PQ and HLG, wide gamuts."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, features
from support.media import adobe_rgb, encoded

from emu3_megatron.media.colour import HLG, PQ, to_srgb
from emu3_megatron.media.images import decode_image

STORED = (100, 150, 120)
BT2020 = 9


def by_hand(colour):
    """sRGB of a colour of AdobeRGB, by the matrix between them."""
    linear = (np.array(colour) / 255) ** 2.19921875
    linear = np.array([[1.3984, -0.3984, 0], [0, 1, 0], [0, -0.0429, 1.0429]]) @ linear
    return 255 * (1.055 * linear.clip(0, 1) ** (1 / 2.4) - 0.055)


def decode(data):
    return decode_image(data, "a")


def first(decoded):
    return np.asarray(decoded.image, int)[0, 0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_profile_is_applied(kind):
    image = Image.new("RGB", (16, 16), STORED)

    decoded = decode(encoded(image, kind, icc_profile=adobe_rgb()))

    np.testing.assert_allclose(first(decoded), by_hand(STORED), atol=3)
    assert abs(first(decoded) - STORED).max() > 20
    assert decoded.notes == ("icc",)


def test_colours_that_srgb_lacks_are_clipped():
    green = Image.new("RGB", (8, 8), (0, 255, 0))

    assert first(decode(encoded(green, icc_profile=adobe_rgb()))).tolist() == [0, 255, 0]


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_a_profile_and_transparency(mode):
    image = Image.new("RGBA", (8, 8), (*STORED, 255))
    image.paste((0, 0, 0, 0), (4, 0, 8, 8))
    image = image if mode == "RGBA" else image.quantize(2)

    decoded = decode(encoded(image, icc_profile=adobe_rgb()))

    np.testing.assert_allclose(first(decoded), by_hand(STORED), atol=3)
    assert decoded.image.getpixel((7, 0)) == (255, 255, 255)
    assert decoded.notes == ("icc", "alpha")


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_profile_of_srgb_changes_nothing(mode):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.linear_gradient("L").convert(mode)

    decoded = decode(encoded(image, icc_profile=profile))

    assert decoded.image.tobytes() == image.convert("RGB").tobytes()
    assert decoded.notes == ()


@pytest.mark.parametrize("profile", [b"nonsense", adobe_rgb()[:200]])
def test_a_damaged_profile_changes_nothing_and_is_noted(profile):
    decoded = decode(encoded(Image.new("RGB", (8, 8), STORED), icc_profile=profile))

    assert first(decoded).tolist() == list(STORED)
    assert decoded.notes == ("unusable icc",)


# HDR


def grey(signal):
    return np.full((1, 1, 3), round(signal * 65_535), np.uint16)


@pytest.mark.parametrize(
    ("transfer", "signal", "light"),
    [
        (PQ, 0.38, 26 / 203),  # 26 cd/m2: the 18% grey card of ITU-R BT.2408
        (PQ, 0.5081, 100 / 203),
        (HLG, 0.38, 26 / 203),  # the same
        (PQ, 0.0, 0.0),
    ],
)
def test_what_is_darker_than_paper_keeps_its_brightness(transfer, signal, light):
    expected = 255 * (1.055 * light ** (1 / 2.4) - 0.055) if light else 0

    value = to_srgb(grey(signal), BT2020, transfer)[0, 0]

    np.testing.assert_allclose(value, expected, atol=2)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_highlights_are_told_apart_and_get_brighter(transfer):
    values = [int(to_srgb(grey(s), BT2020, transfer)[0, 0, 0]) for s in (0.58, 0.65, 0.7, 0.75)]

    assert values == sorted(set(values))
    assert to_srgb(grey(1), BT2020, transfer).min() == 255


def test_a_wide_gamut_is_converted():
    inside = np.array([[[0.6274, 0.0691, 0.0164]]])  # the red of BT.709, in light of BT.2020
    stored = 255 * (1.055 * inside ** (1 / 2.4) - 0.055)

    red = to_srgb(stored.round().astype(np.uint8), BT2020, 14)[0, 0]

    np.testing.assert_allclose(red, [255, 0, 0], atol=12)


def with_cicp(png, primaries, transfer):
    body = b"cICP" + bytes((primaries, transfer, 0, 1))
    chunk = struct.pack(">I", 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:33] + chunk + png[33:]  # behind the header


def with_nclx(avif, primaries, transfer):
    at = avif.index(b"colrnclx") + 8
    return avif[:at] + struct.pack(">HH", primaries, transfer) + avif[at + 4 :]


@pytest.mark.parametrize(("transfer", "note"), [(PQ, "pq"), (HLG, "hlg"), (1, "wide gamut")])
@pytest.mark.parametrize(("kind", "mark"), [("PNG", with_cicp), ("AVIF", with_nclx)])
def test_images_of_hdr_and_wide_gamut_are_converted(kind, mark, transfer, note):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image = Image.new("RGB", (16, 16), STORED)

    decoded = decode(mark(encoded(image, kind), BT2020, transfer))

    expected = to_srgb(np.array([[STORED]], np.uint8), BT2020, transfer)[0, 0]
    np.testing.assert_allclose(first(decoded), expected, atol=6)
    assert decoded.notes == (note,)
