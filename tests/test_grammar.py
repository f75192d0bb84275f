"""Documents: token by token on tiny grids, and taken apart again."""

import numpy as np
import pytest

from emu3_megatron import grammar
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import GrammarError, Meta, Turn, Vision, parse
from emu3_megatron.vocabulary import Vocabulary

V = Vocabulary.tiny()
BOS, EOS, PAD = V.bos, V.eos, V.pad
BOI, IMG, EOL, EOF, EOI = (
    V.vision_start,
    V.codes_follow,
    V.end_of_line,
    V.end_of_frame,
    V.vision_end,
)

CODES = np.array([[7, 8, 9], [0, 511, 1]])
IMAGE = [
    *(BOI, *b"2*3", IMG),
    *(V.first_code + 7, V.first_code + 8, V.first_code + 9, EOL),
    *(V.first_code + 0, V.first_code + 511, V.first_code + 1, EOL),
    *(EOF, EOI),
]


def spans_of(document):
    """(tokens, trained) of each span."""
    return [(span.tokens.tolist(), span.trained) for span in document.spans]


def vision_equal(found, meta, codes):
    assert found.meta == meta
    np.testing.assert_array_equal(found.codes, codes)


# Layout


def test_captioned_image():
    document = grammar.captioned_image(V, "a cat", CODES)

    assert spans_of(document) == [([BOS, *b"a cat"], True), (IMAGE, True), ([EOS], True)]


def test_understanding():
    document = grammar.understanding(V, CODES, "a cat")

    assert spans_of(document) == [([BOS], True), (IMAGE, True), ([*b"a cat", EOS], True)]


def test_plain_text():
    assert spans_of(grammar.plain_text(V, "words")) == [([BOS, *b"words", EOS], True)]


def test_captioned_clip():
    codes = np.array([[[1, 2]], [[3, 4]]])  # two latent frames of 1 x 2

    document = grammar.captioned_clip(V, "run", codes, fps=12, seconds=0.7)

    first = V.first_code
    clip = [BOI, *b"1*2*2 12fps 0.7s", IMG]
    clip += [first + 1, first + 2, EOL, EOF, first + 3, first + 4, EOL, EOF, EOI]
    assert spans_of(document) == [([BOS, *b"run"], True), (clip, True), ([EOS], True)]


def test_dialogue_about_an_image_is_the_template_of_emu3_chat():
    document = grammar.dialogue(V, [Turn([Vision.image(CODES), "What is it"], "a cat")])

    assert spans_of(document) == [
        ([BOS, *b"You are a helpful assistant. USER: "], False),
        (IMAGE, False),
        ([*b"What is it. ASSISTANT:"], False),  # the full stop is literal, no space follows
        ([*b"a cat", EOS], True),
    ]


def test_dialogue_goes_on_after_the_answer():
    document = grammar.dialogue(V, [Turn(["one"], "two"), Turn(["three"], "four")])

    assert spans_of(document) == [
        ([BOS, *b"You are a helpful assistant. USER: one. ASSISTANT:"], False),
        ([*b"two", EOS], True),
        ([*b" USER: three. ASSISTANT:"], False),
        ([*b"four", EOS], True),
    ]


def test_dialogue_without_an_answer_is_open():
    document = grammar.dialogue(V, [Turn(["one"], None)])

    assert bytes(document.tokens[1:].tolist()).endswith(b"one. ASSISTANT:")
    assert [span.trained for span in document.spans] == [False]


def test_texts_side_by_side_in_a_question_are_one_text():
    together = grammar.dialogue(V, [Turn(["one", " and ", "two"], "three")])

    assert spans_of(together) == spans_of(grammar.dialogue(V, [Turn(["one and two"], "three")]))


def test_a_system_text_takes_the_place_of_emu3s():
    (opening, _) = grammar.dialogue(V, [Turn(["one"], "two")], system="Be brief.").spans

    assert bytes(opening.tokens[1:].tolist()) == b"Be brief. USER: one. ASSISTANT:"


def test_vision_prompt_ends_where_the_first_code_follows():
    document = grammar.captioned_image(V, "a cat", CODES).tokens.tolist()

    prompt = grammar.vision_prompt(V, "a cat", Meta(2, 3)).tolist()

    assert prompt == [BOS, *b"a cat", BOI, *b"2*3", IMG] == document[: len(prompt)]


def test_the_prompt_of_an_image_ends_where_its_caption_follows():
    assert grammar.open_prompt(V, [grammar.Vision.image(CODES)]).tolist() == [BOS, *IMAGE]


@pytest.mark.parametrize(
    ("height", "width", "length"),
    [(64, 64, 4169), (90, 90, 8199), (68, 120, 8238), (1, 1, 9), (100, 7, 809)],
)
def test_length_of_an_image(height, width, length):
    span = grammar.vision_span(V, Meta(height, width), np.zeros((1, height, width), int))

    assert len(span) == 4 + len(f"{height}*{width}") + height * (width + 1) == length
    assert span.dtype == np.int32


def test_length_of_a_document():
    document = grammar.captioned_image(V, "a cat", CODES)

    assert len(document) == len(document.tokens) == 1 + 5 + len(IMAGE) + 1


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int64])
def test_codes_of_any_integer_kind(kind):
    codes = np.array([[[0, 1]]], kind)

    span = grammar.vision_span(V, Meta(1, 2), codes)

    assert span[5:7].tolist() == [V.first_code, V.first_code + 1]


@pytest.mark.parametrize("code", [-1, 512])
def test_codes_outside_the_codebook_are_refused(code):
    with pytest.raises(InputError, match=r"lie outside the codebook of 512; use the tokenizer"):
        grammar.captioned_image(V, "", np.array([[0, code]]))


def test_codes_of_another_shape_than_the_meta_text_are_refused():
    with pytest.raises(InputError, match=r"codes of shape \(1, 3, 2\) do not fit the grid 2\*3"):
        grammar.vision_span(V, Meta(2, 3), np.zeros((1, 3, 2), int))


def test_an_empty_grid_is_refused():
    with pytest.raises(InputError, match=r"an empty grid of codes: 0\*5"):
        grammar.captioned_image(V, "", np.zeros((0, 5), int))


# The way back

SHAPES = [(1, 1), (1, 7), (7, 1), (2, 3), (11, 10)]


@pytest.fixture(params=SHAPES, ids=lambda shape: "{}x{}".format(*shape))
def codes(request):
    return np.random.default_rng(0).integers(0, 512, request.param)


def test_parsing_a_captioned_image(codes):
    text, vision = parse(V, grammar.captioned_image(V, "eine Katze ぬ", codes).tokens)

    assert text == "eine Katze ぬ"
    vision_equal(vision, Meta(*codes.shape), codes[None])


def test_parsing_an_understood_image(codes):
    vision, text = parse(V, grammar.understanding(V, codes, "a cat").tokens)

    assert text == "a cat"
    vision_equal(vision, Meta(*codes.shape), codes[None])


@pytest.mark.parametrize(("fps", "seconds"), [(24, 5), (12.5, 0.32), (29.97, 1.001)])
def test_parsing_a_clip(codes, fps, seconds):
    clip = np.stack([codes, codes[::-1], 511 - codes])

    text, vision = parse(V, grammar.captioned_clip(V, "run", clip, fps, seconds).tokens)

    assert text == "run"
    vision_equal(vision, Meta(*codes.shape, 3, fps, seconds), clip)


def test_parsing_text():
    assert parse(V, grammar.plain_text(V, "2*3 words").tokens) == ["2*3 words"]


def test_parsing_a_dialogue_with_several_images(codes):
    turns = [
        Turn([Vision.image(codes), "one"], "two"),
        Turn(["three"], "four"),
        Turn([Vision.image(CODES), "five"], "six"),
    ]

    opening, first, between, second, rest = parse(V, grammar.dialogue(V, turns).tokens)

    assert opening == "You are a helpful assistant. USER: "
    vision_equal(first, Meta(*codes.shape), codes[None])
    assert between == "one. ASSISTANT:two USER: three. ASSISTANT:four USER: "
    vision_equal(second, Meta(2, 3), CODES[None])
    assert rest == "five. ASSISTANT:six"


def test_parsing_images_side_by_side_and_padding():
    parts = parse(V, np.array([BOS, *IMAGE, *IMAGE, EOS, PAD, PAD]))

    assert [type(part) for part in parts] == [Vision, Vision]


def test_parsing_a_packed_sequence_gives_the_parts_of_all_documents():
    documents = [grammar.plain_text(V, "one"), grammar.captioned_image(V, "two", CODES)]

    one_two, vision = parse(V, np.concatenate([document.tokens for document in documents]))

    assert one_two == "onetwo"
    assert isinstance(vision, Vision)


def test_parsing_nothing():
    assert parse(V, np.array([BOS, EOS, PAD])) == []


# Broken spans. IMAGE stands behind BOS: BOI is token 1, the meta text 2 to 4, IMG 5, the first code
# 6, its row's EOL 9, EOF 14, EOI 15.


def replaced(position, *tokens):
    document = [BOS, *IMAGE, EOS]
    document[position : position + 1] = tokens
    return document


BROKEN = {
    "a code before BOI": ([BOS, V.first_code, *IMAGE, EOS], "token 1: a code or vision mark"),
    "EOL before BOI": ([BOS, *b"ab", EOL, *IMAGE, EOS], "token 3: a code or vision mark"),
    "EOI before BOI": ([BOS, EOI, *IMAGE], "token 1: a code or vision mark"),
    "a code between images": ([*IMAGE, V.first_code, *IMAGE], "token 15: a code or vision mark"),
    "a code behind EOI": ([BOS, *IMAGE, V.first_code], "token 16: a code or vision mark"),
    "a second EOI": ([BOS, *IMAGE, EOI], "token 16: a code or vision mark"),
    "no BOI": (replaced(1), "token 4: a code or vision mark"),
    "BOI alone": ([BOS, BOI], "token 1: BOI without IMG"),
    "no IMG": (replaced(5), "token 1: BOI without IMG"),
    "no meta text": ([BOI, IMG, *IMAGE[5:]], "token 0: BOI, and then no grid size"),
    "meta text that is no size": (replaced(3, *b"by"), "token 1: .* no grid size .*: '2by3'"),
    "meta text of an empty grid": (replaced(2, *b"0"), r"token 1: .* an empty grid: '0\*3'"),
    "meta text with a zero before": (replaced(2, *b"02"), r"token 1: .* written 2\*3, not '02\*3'"),
    "a code in the meta text": (replaced(3, *b"*", V.first_code), "token 1: .* token 4: a code"),
    "BOI in the meta text": (replaced(2, BOI, *b"2"), "token 1: .* token 2: a code or vision mark"),
    "a larger grid": (replaced(2, *b"3"), r"token 19: no EOI after the codes of a 3\*3 grid"),
    "a smaller grid": (replaced(4, *b"2"), r"token 13: no EOI after the codes of a 2\*2 grid"),
    "a code too many": (replaced(6, V.first_code, V.first_code), "token 15: no EOI"),
    "a code too few": (replaced(6), "token 15: no EOI"),
    "text for a code": (replaced(7, *b"x"), r"token 7: the rows of a 2\*3 grid are broken"),
    "an id past the codebook": (replaced(8, V.size), "token 8: the rows"),
    "EOL for a code": (replaced(6, EOL), "token 6: the rows"),
    "a code for EOL": (replaced(9, V.first_code), "token 9: the rows"),
    "EOL for EOF": (replaced(14, EOL), "token 14: the rows"),
    "BOI for a code": (replaced(6, BOI), "token 6: the rows"),
    "EOS for EOI": (replaced(15, EOS), "token 15: no EOI"),
    "cut short": ([BOS, *IMAGE[:9]], "token 15: no EOI"),
    "the second image cut short": ([*IMAGE, *IMAGE[:9]], "token 29: no EOI"),
}


@pytest.mark.parametrize(("tokens", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_spans_are_refused(tokens, message):
    with pytest.raises(GrammarError, match=message):
        parse(V, np.array(tokens))


# What the meta text says


@pytest.mark.parametrize(
    ("meta", "text"),
    [
        (Meta(64, 48), "64*48"),
        (Meta(1, 1, 1, 24.0, 0.5), "1*1*1 24fps 0.5s"),
        (Meta(36, 64, 30, 23.976, 5.005), "36*64*30 23.976fps 5.005s"),
    ],
)
def test_meta_text_and_back(meta, text):
    assert str(meta) == text
    assert Meta.parse(text) == meta


@pytest.mark.parametrize(
    "text",
    [
        "",
        "64",
        "64x64",
        "64*64*2",
        "64*64*2 24fps",
        " 64*64",
        "64*64\n",
        "-1*2",
        "٢*3",
        "1*1*0 1fps 1s",
    ],
)
def test_other_meta_text_is_refused(text):
    with pytest.raises(GrammarError):
        Meta.parse(text)
