"""Images of every kind are read as upright 8-bit RGB; resizing; pixels and back."""

import contextlib
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, features
from support.media import encoded

from emu3_megatron.errors import InputError
from emu3_megatron.media.images import (
    decode_image,
    load_image,
    resize_to_area,
    shrink,
    size_for_area,
    to_image,
    to_pixels,
)


def gradient(width=40, height=24):
    """Redder downwards and greener to the right: no turn of it looks like another."""
    rows, columns = np.mgrid[:height, :width]
    values = np.stack((255 * rows / height, 255 * columns / width, rows * 0 + 60), -1)
    return Image.fromarray(values.astype(np.uint8))


def decode(data):
    return decode_image(data, "folder/a.jpg")


def mean(decoded):
    return np.asarray(decoded.image, np.float64).mean()


def grey_of(decoded):
    """The first row."""
    return np.asarray(decoded.image)[0, :, 0].tolist()


def tiff(bits, photometric, pixels):
    """Four grey pixels in a row, of integers that Pillow does not write."""
    tags = {256: 4, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1}
    tags[279] = len(pixels)
    entries = [struct.pack("<HHII", number, 4, 1, value) for number, value in tags.items()]
    directory = struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels + directory


# What was done to it


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, orientation):
    # The corners, in reading order, of what is seen when the stored corners are 0 1 / 2 3.
    seen = ["0123", "1032", "3210", "2301", "0213", "2031", "3120", "1302"][orientation - 1]
    grey = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((16, 16), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation

    decoded = decode(encoded(Image.fromarray(grey).convert("RGB"), kind, exif=exif))

    corners = np.asarray(decoded.image.convert("L"), np.float64)[8::16, 8::16].ravel()
    np.testing.assert_allclose(corners, [80 * int(corner) for corner in seen], atol=3)
    assert decoded.notes == (("rotated",) if orientation > 1 else ())


def test_16_bits_are_scaled_by_what_they_can_hold():
    half = Image.fromarray(np.full((8, 8), 32_768, np.uint16))
    dark = Image.fromarray(np.full((8, 8), 200, np.uint16))

    assert mean(decode(encoded(half))) == pytest.approx(127.5, abs=0.5)
    assert mean(decode(encoded(dark))) == pytest.approx(0.8, abs=0.5)
    assert decode(encoded(half)).notes == ("deep",)


def test_every_8_bit_value_comes_back_from_16():
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)

    image = decode(encoded(Image.fromarray(values * 257))).image

    np.testing.assert_array_equal(np.asarray(image)[..., 0], values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.25, 0.5], [64, 128]),  # from 0 to 1, as floats are used
        ([-1.0, 3.0], [0, 255]),  # a range of its own
    ],
)
def test_floats_are_scaled(values, expected):
    decoded = decode(encoded(Image.fromarray(np.array([values], np.float32)), "TIFF"))

    assert grey_of(decoded) == expected
    assert decoded.notes == ("deep",)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5, np.nan, np.inf], [128, 0, 0]),
        ([0.5, 1.0, -3.4e38], [128, 255, 0]),  # the least float, as map makers mark a gap
        ([20.0, 30.0, -9999.0], [0, 255, 0]),  # by GDAL's tag
    ],
)
def test_gaps_are_black_and_change_nothing_else(values, expected):
    image = Image.fromarray(np.array([values], np.float32))

    decoded = decode(encoded(image, "TIFF", tiffinfo={42113: "-9999"}))

    assert grey_of(decoded) == expected
    assert decoded.notes == ("deep", "no data")


def test_a_picture_without_any_value_is_refused():
    nothing = Image.fromarray(np.full((4, 4), np.nan, np.float32))

    with pytest.raises(InputError, match=r"not a readable image \(no pixel has a value\)"):
        decode(encoded(nothing, "TIFF"))


@pytest.mark.parametrize(
    ("bits", "photometric", "pixels", "expected"),
    [
        (12, 1, bytes.fromhex("000 7ff fff 3ff".replace(" ", "")), [0, 127, 255, 64]),
        (16, 0, struct.pack("<4H", 0, 32_768, 65_535, 0), [255, 127, 0, 255]),  # white is zero
        (32, 1, struct.pack("<4I", 0, 2**31, 2**32 - 1, 2**30), [0, 128, 255, 64]),
        (32, 1, struct.pack("<4I", 0, 100, 255, 7), [0, 100, 255, 7]),  # only 8 of them used
        (32, 1, struct.pack("<4I", 0, 257, 65_535, 514), [0, 1, 255, 2]),  # and 16
    ],
)
def test_integers_are_scaled_by_their_bits(bits, photometric, pixels, expected):
    decoded = decode(tiff(bits, photometric, pixels))

    assert grey_of(decoded) == expected
    assert decoded.notes == ("deep",)


def test_cmyk_becomes_rgb():
    decoded = decode(encoded(gradient().convert("CMYK"), "JPEG", quality=95))

    assert (decoded.image.mode, decoded.notes) == ("RGB", ("cmyk",))
    difference = np.asarray(decoded.image, np.float64) - np.asarray(gradient(), np.float64)
    assert abs(difference).max() < 12


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_white(mode):
    black = Image.new("L", (8, 8), 0)
    half = Image.merge("LA", (black, Image.new("L", (8, 8), 128)))
    half.paste((0, 0), (0, 0, 4, 8))  # all clear on the left
    data = encoded(half.convert("RGBA").quantize(2) if mode == "P" else half.convert(mode))

    decoded = decode(data)

    assert decoded.notes == ("alpha",)
    assert decoded.image.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.image.getpixel((7, 0)) == (127, 127, 127)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]

    decoded = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))

    assert decoded.notes == ("first of 3",)
    assert decoded.image.getpixel((0, 0)) == (255, 0, 0)


# What cannot be read


def damaged_gif():
    """Ends inside its second frame of three: Pillow raises an IndexError."""
    frames = [Image.effect_noise((24, 24), 40 + i) for i in range(3)]
    whole = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    return whole[: len(whole) // 2]


def damaged_avif():
    """Pillow raises a RuntimeError."""
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = encoded(gradient(48, 40), "AVIF")
    begin = data.index(b"mdat") + 4
    return data[:begin] + b"\xff" * 40 + data[begin + 40 :]


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"",
        lambda: b"not an image",
        lambda: b"\xff\xd8\xff\xe0 not a photo",
        lambda: encoded(gradient(64, 64), "JPEG")[:600],
        lambda: encoded(gradient(64, 64))[:-200],
        lambda: encoded(gradient(64, 64), "WEBP")[:-40],
        lambda: encoded(gradient(64, 64), "TIFF")[:200],
        damaged_gif,
        damaged_avif,
    ],
    ids=["empty", "text", "head", "jpeg", "png", "webp", "tiff", "gif", "avif"],
)
def test_what_is_no_whole_image_is_refused_in_one_line(make):
    with pytest.raises(InputError) as caught:
        decode(make())

    assert str(caught.value).startswith("folder/a.jpg: not a readable image (")
    assert "\n" not in str(caught.value)
    assert caught.value.reason.startswith("not a readable image (")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF"])
def test_no_damage_gets_past_the_reader(kind):
    """Whatever the decoder raises is an InputError; some damage is never noticed."""
    whole = encoded(gradient(), kind)
    random = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(100):
            data = bytearray(whole[: random.integers(1, len(whole) + 1)])
            for place in random.integers(0, len(data), 4):
                data[place] = random.integers(256)
            with contextlib.suppress(InputError):
                assert decode(bytes(data)).image.mode == "RGB"


def test_a_wrong_name_does_not_matter():
    assert decode_image(encoded(gradient(), "WEBP"), "a.jpg").image.size == (40, 24)


def test_postscript_is_not_opened():
    with pytest.raises(InputError, match="unknown format"):
        decode(encoded(gradient(), "EPS"))


def exif_with(*entries):
    """EXIF of (tag, kind, value of 4 bytes); Pillow does not write damaged ones."""
    body = b"".join(struct.pack(">HHI4s", tag, kind, 1, value) for tag, kind, value in entries)
    head = b"Exif\0\0" + struct.pack(">2sHIH", b"MM", 42, 8, len(entries))
    return head + body + bytes(4)


def test_damaged_exif_beside_the_orientation_does_not_matter():
    upright = (0x0112, 3, struct.pack(">HH", 6, 0))
    text_for_a_number = (0x0142, 2, b"ten\0")

    decoded = decode(encoded(gradient(), "JPEG", exif=exif_with(upright, text_for_a_number)))

    assert (decoded.image.size, decoded.notes) == ((24, 40), ("rotated",))


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\xff\xff"])
def test_an_image_without_readable_exif_stays_as_it_is_stored(exif):
    decoded = decode(encoded(gradient(), "JPEG", exif=exif))

    assert (decoded.image.size, decoded.notes) == ((40, 24), ())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.png: cannot be read \(No such file"):
        load_image(tmp_path / "none.png")


def test_a_narrow_image_is_refused(tmp_path):
    gradient(101, 20).save(tmp_path / "narrow.png")

    with pytest.raises(InputError, match=r"narrow\.png: 101x20"):
        load_image(tmp_path / "narrow.png")


# Sizes and pixels


@pytest.mark.parametrize("size", [(640, 480), (451, 300), (300, 1400), (50, 60)])
def test_resize_keeps_area_and_aspect(size):
    width, height = resize_to_area(gradient(*size), 128 * 128).size

    assert (width % 8, height % 8) == (0, 0)
    assert width * height == pytest.approx(128 * 128, rel=0.1)
    assert width / height == pytest.approx(size[0] / size[1], rel=0.1)


def test_grid_of_the_published_square():
    assert size_for_area(1000, 1000, 720 * 720) == (720, 720)


def test_shrinking_never_enlarges():
    assert shrink(gradient(40, 24), 12).size == (20, 12)
    assert shrink(gradient(40, 24), 30).size == (40, 24)


def test_pixels_and_back():
    image = gradient(16, 8)
    pixels = to_pixels(image)

    assert pixels.shape == (3, 8, 16)
    assert to_pixels(Image.new("RGB", (8, 8), (0, 255, 0))).unique().tolist() == [-1, 1]
    assert to_image(pixels).tobytes() == image.tobytes()
