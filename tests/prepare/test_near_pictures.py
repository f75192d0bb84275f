"""Near duplicates of pictures: copies are found, other colours are other pictures."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from skimage import data
from support.media import encoded

from emu3_megatron.media.images import read_image
from emu3_megatron.prepare.groups import first_kept
from emu3_megatron.prepare.scores.duplicates import near_pairs, signature, signatures

# Of Debian's package tuxpaint-stamps-default: installed, or unpacked in the folder that is named.
STAMPS = Path(os.environ.get("TUXPAINT_STAMPS", "/"), "usr/share/tuxpaint/stamps")


def kept(*images):
    pairs = near_pairs(signatures([signature(image) for image in images]), max_bits=4)
    return first_kept(len(images), pairs)


def cropped(image, left, top, right, bottom):
    width, height = image.size
    edges = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    return image.crop(tuple(round(edge) for edge in edges))


def recoded(image, form, **settings):
    return Image.open(io.BytesIO(encoded(image, form, **settings))).convert("RGB")


COPIES = {
    "JPEG of quality 50": lambda image: recoded(image, "JPEG", quality=50),
    "WebP of quality 60": lambda image: recoded(image, "WEBP", quality=60),
    "half as wide": lambda image: image.resize((image.width // 2, image.height // 2)),
    "half as wide again": lambda image: image.resize((image.width * 3 // 2, image.height * 3 // 2)),
    "5% less, around": lambda image: cropped(image, 0.025, 0.025, 0.025, 0.025),
    "5% less, left and top": lambda image: cropped(image, 0.05, 0.05, 0, 0),
    "5% less, right": lambda image: cropped(image, 0, 0, 0.05, 0),
    "5% of each side less": lambda image: cropped(image, 0.05, 0.05, 0.05, 0.05),
}


def flag(colour, size=(93, 96)):
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((8, 4, 12, 92), fill="black")
    draw.polygon([(12, 6), (86, 24), (12, 46)], fill=colour)
    return image


@pytest.mark.parametrize("kind", COPIES)
def test_copies_of_photos_are_found(kind):
    cat, coffee = (Image.fromarray(photo()) for photo in (data.chelsea, data.coffee))

    assert kept(cat, coffee, COPIES[kind](cat), COPIES[kind](coffee)) == [None, None, 0, 1]


@pytest.mark.parametrize("kind", COPIES)
def test_copies_of_drawings_are_found(kind):
    assert kept(flag("red"), COPIES[kind](flag("red"))) == [None, 0]


def test_flags_of_other_colours_are_other_pictures():
    assert kept(*map(flag, ("red", "green", "yellow", "#ff5500"))) == [None] * 4


def test_a_photo_in_other_colours_is_another_picture():
    cat = Image.fromarray(data.chelsea())
    turned = Image.fromarray(data.chelsea()[:, :, ::-1])

    assert kept(cat, turned) == [None, None]


def test_pale_drawings_are_told_from_an_empty_page():
    page = Image.new("RGB", (80, 80), "white")
    drawn = page.copy()
    ImageDraw.Draw(drawn).line((10, 70, 70, 10), fill="#ffb080", width=2)

    assert kept(page, drawn, page.copy()) == [None, None, 0]


def test_a_transparent_picture_is_compared_as_it_is_kept(tmp_path):
    flag("red").save(tmp_path / "opaque.png")
    clear = flag("red").convert("RGBA")
    pixels = np.array(clear)
    pixels[(pixels[..., :3] == 255).all(-1)] = (0, 0, 0, 0)  # black below what is not seen
    Image.fromarray(pixels).save(tmp_path / "clear.png")

    opaque, clear = (read_image(tmp_path / f"{name}.png").image for name in ("opaque", "clear"))

    assert kept(opaque, clear) == [None, 0]


def test_many_signatures_are_compared_as_few_are(monkeypatch):
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (9, 9, 3), np.uint8)) for _ in range(30)]
    found = signatures([signature(i.resize((60, 60))) for i in images for _ in range(2)])
    at_once = near_pairs(found, max_bits=7)

    monkeypatch.setattr("emu3_megatron.prepare.scores.duplicates._PAIRS", 64)

    assert near_pairs(found, max_bits=7).tolist() == at_once.tolist()
    assert {(2 * i, 2 * i + 1) for i in range(30)} <= set(map(tuple, at_once.tolist()))


@pytest.mark.slow
def test_the_stamps_of_tux_paint():
    if not STAMPS.is_dir():
        pytest.skip("tuxpaint-stamps-default is not installed, nor where TUXPAINT_STAMPS says")
    unique = {path.read_bytes(): path for path in sorted(STAMPS.rglob("*.png"))}
    images = [read_image(path).image for path in unique.values()]
    images.sort(key=lambda image: -image.width * image.height)
    # Two spinning tops and their mirror images, whose letters differ in one stroke.
    assert sum(first is not None for first in kept(*images)) <= 2

    some = images[::7][:100]
    for kind, copy in COPIES.items():
        pairs = near_pairs(
            signatures([signature(image) for image in (*some, *map(copy, some))]), max_bits=4
        )
        found = set(map(tuple, pairs.tolist()))
        assert sum((i, i + len(some)) in found for i in range(len(some))) >= 95, kind
