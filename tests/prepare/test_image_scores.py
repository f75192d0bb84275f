"""What is measured of images: quality, colour, and which are near duplicates."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter
from skimage import data
from support.media import encoded

from emu3_megatron.prepare.scores.colour import colourfulness
from emu3_megatron.prepare.scores.duplicates import difference_hash, near_duplicates
from emu3_megatron.prepare.scores.quality import pixel_quality


@pytest.fixture(scope="module")
def cat():
    return Image.fromarray(data.chelsea())


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
