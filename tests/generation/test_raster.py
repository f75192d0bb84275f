"""Whatever the raster allows, the grammar lays out and parses."""

from itertools import product

import numpy as np
import pytest

from emu3_megatron.generation.raster import Choice, Raster
from emu3_megatron.grammar import GrammarError, Meta, Vision, parse, vision_prompt, vision_span
from emu3_megatron.vocabulary import Vocabulary

VOCABULARY = Vocabulary.tiny()
GRIDS = [Meta(h, w) for h, w in product(range(1, 5), repeat=2)] + [
    Meta(h, w, f, 8, f / 2) for h, w, f in ((1, 1, 1), (1, 1, 3), (1, 2, 2), (2, 1, 3), (3, 4, 2))
]


def random_codes(meta: Meta, seed: int = 0) -> np.ndarray:
    shape = (meta.frames, meta.height, meta.width)
    return np.random.default_rng(seed).integers(VOCABULARY.num_codes, size=shape)


def write(raster: Raster, codes: np.ndarray) -> list[int]:
    """Tokens until EOI: the forced ones, and `codes` one by one where a code may stand."""
    supply = iter(codes.reshape(-1) + VOCABULARY.first_code)
    written = []
    while raster.allowed is not Choice.TEXT:
        token = next(supply) if raster.allowed is Choice.CODE else raster.allowed
        raster.feed(token)
        written.append(token)
    return written


@pytest.mark.parametrize("meta", GRIDS, ids=str)
def test_every_grid_is_written_as_the_grammar_lays_it_out(meta):
    codes = random_codes(meta)
    prompt = vision_prompt(VOCABULARY, "a cat", meta)

    written = write(Raster(VOCABULARY, prompt), codes)

    expected = vision_span(VOCABULARY, meta, codes)
    assert written == expected[-len(written) :].tolist()
    assert len(written) == meta.num_tokens + 1


def test_written_images_parse_back():
    meta = Meta(3, 2, 2, 8, 1)
    codes = random_codes(meta)
    prompt = vision_prompt(VOCABULARY, "a cat", meta)

    document = np.append(prompt, write(Raster(VOCABULARY, prompt), codes))

    text, vision = parse(VOCABULARY, document)
    assert text == "a cat"
    assert isinstance(vision, Vision)
    assert vision.meta == meta
    np.testing.assert_array_equal(vision.codes, codes)


def test_several_images_in_one_sequence():
    raster = Raster(VOCABULARY)
    for meta in (Meta(2, 3), Meta(1, 1), Meta(4, 2)):
        for token in vision_prompt(VOCABULARY, "next: ", meta):
            raster.feed(int(token))
        written = write(raster, random_codes(meta))
        assert len(written) == meta.num_tokens + 1


@pytest.mark.parametrize("read", range(1, 14))
def test_a_prompt_may_end_anywhere_inside_an_image(read):
    meta = Meta(2, 2, 2, 8, 1)
    codes = random_codes(meta)
    whole = vision_span(VOCABULARY, meta, codes)
    start = len(whole) - meta.num_tokens - 1
    seen, rest = whole[: start + read], whole[start + read :]

    written = write(
        Raster(VOCABULARY, seen), rest[rest >= VOCABULARY.first_code] - VOCABULARY.first_code
    )

    assert written == rest.tolist()


def test_the_grid_size_may_be_written_by_the_model_and_must_be_whole_before_img():
    raster = Raster(VOCABULARY, [VOCABULARY.vision_start])
    seen = []
    for token in VOCABULARY.encode("2*13"):
        seen.append(raster.allowed)
        raster.feed(int(token))

    assert seen == [Choice.META, Choice.META, Choice.META, Choice.WHOLE_META]
    assert raster.allowed is Choice.WHOLE_META


def test_an_illegal_grid_size_is_an_error():
    tokens = [VOCABULARY.vision_start, *VOCABULARY.encode("2x3"), VOCABULARY.codes_follow]

    with pytest.raises(GrammarError, match="no grid size between BOI and IMG: '2x3'"):
        Raster(VOCABULARY, tokens)


@pytest.mark.parametrize(
    ("before", "token"),
    [
        ("", VOCABULARY.end_of_line),
        ("", VOCABULARY.first_code),
        ("BOI", VOCABULARY.vision_start),
        ("IMG", VOCABULARY.end_of_line),
        ("IMG", VOCABULARY.size),
        ("row", VOCABULARY.first_code),
    ],
)
def test_what_is_not_allowed_is_an_error(before, token):
    prefix = vision_prompt(VOCABULARY, "", Meta(1, 1))
    prompts = {
        "": prefix[:1],
        "BOI": prefix[:2],
        "IMG": prefix,
        "row": [*prefix, VOCABULARY.first_code],
    }
    raster = Raster(VOCABULARY, prompts[before])

    with pytest.raises(GrammarError, match=str(token)):
        raster.feed(token)
