"""What is measured of images: quality, colour, and which are near duplicates."""

import io

import pytest
from PIL import Image, ImageFilter
from skimage import data
from support.media import encoded

from emu3_megatron.prepare.scores.colour import colourfulness
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
