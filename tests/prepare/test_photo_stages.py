"""Decoding photos of every kind, and what is measured of them."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter
from skimage import data

from emu3_megatron.errors import InputError
from emu3_megatron.media.photo import decode_photo
from emu3_megatron.prepare.scores.colour import colourfulness
from emu3_megatron.prepare.scores.duplicates import difference_hash, near_duplicates
from emu3_megatron.prepare.scores.quality import pixel_quality


def encoded(image, form="PNG", **settings):
    file = io.BytesIO()
    image.save(file, form, **settings)
    return file.getvalue()


@pytest.fixture(scope="module")
def cat():
    return Image.fromarray(data.chelsea())


# Decoding


def test_a_rotated_photo_is_turned_upright(cat):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to see it"

    photo = decode_photo(encoded(cat, "JPEG", exif=exif))

    assert photo.image.size == cat.size[::-1]
    assert photo.notes == ("rotated",)


def test_16_bits_are_scaled(cat):
    deep = np.asarray(cat.convert("L"), np.uint16) * 257

    photo = decode_photo(encoded(Image.fromarray(deep)))

    assert photo.notes == ("deep",)
    np.testing.assert_array_equal(np.asarray(photo.image)[..., 0], np.asarray(cat.convert("L")))


def test_transparency_is_laid_over_white():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))

    photo = decode_photo(encoded(clear))

    assert photo.notes == ("alpha",)
    assert photo.image.getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_becomes_rgb(cat):
    photo = decode_photo(encoded(cat.convert("CMYK"), "JPEG"))

    assert (photo.image.mode, photo.notes) == ("RGB", ("cmyk",))


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]

    photo = decode_photo(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))

    assert photo.notes == ("first of 3",)
    assert photo.image.getpixel((0, 0)) == (255, 0, 0)


def test_what_is_no_photo_is_refused(cat):
    whole = encoded(cat, "JPEG")
    for content in (whole[: len(whole) // 2], b"not an image", b""):
        with pytest.raises(InputError, match="not a readable image"):
            decode_photo(content)


# Scores


def test_blur_compression_and_darkness_lower_the_quality(cat):
    good = pixel_quality(cat)
    blurred = pixel_quality(cat.filter(ImageFilter.GaussianBlur(4)))
    blocky = pixel_quality(Image.open(io.BytesIO(encoded(cat, "JPEG", quality=5))))
    dark = pixel_quality(cat.point(lambda value: value // 12))

    assert good > 8
    assert max(blurred, dark) < 5.5
    assert blocky < good


def test_colourfulness_tells_grey_from_colour(cat):
    assert colourfulness(cat.convert("L").convert("RGB")) == 0
    assert colourfulness(cat) > 30


# Duplicates


def test_a_recompressed_or_smaller_copy_is_near(cat):
    copies = [cat.resize((200, 133)), Image.open(io.BytesIO(encoded(cat, "JPEG", quality=30)))]
    other = Image.fromarray(data.coffee())

    hashes = [difference_hash(image) for image in (cat, *copies, other)]

    assert near_duplicates(hashes, max_bits=3) == [None, 0, 0, None]


@pytest.mark.parametrize("bits", [0, 1, 4])
def test_near_duplicates_agree_with_comparing_all_pairs(bits):
    random = np.random.default_rng(0)
    hashes = [int(value) for value in random.integers(0, 1 << 63, 40)]
    hashes += [value ^ sum(1 << int(b) for b in random.integers(0, 64, 4)) for value in hashes]

    kept, expected = [], []
    for number, value in enumerate(hashes):
        near = [i for i in kept if (value ^ hashes[i]).bit_count() <= bits]
        expected.append(min(near, default=None))
        if not near:
            kept.append(number)

    assert near_duplicates(hashes, bits) == expected
