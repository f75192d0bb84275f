"""What is trained of dialogues of one to eight turns, token by token, against a table by hand.

A character is a token: ^ BOS, $ EOS, and of an image of one code [ BOI, # IMG, % code, | EOL,
~ EOF, ] EOI; every other stands for itself. Below each line, + marks the trained tokens.
"""

import numpy as np
import pytest

from emu3_megatron.data.batches import IGNORE
from emu3_megatron.data.rows import RowBuilder
from emu3_megatron.data.source import Piece
from emu3_megatron.grammar import Turn, Vision, dialogue
from emu3_megatron.vocabulary import CLASS_WEIGHTS, Vocabulary

V = Vocabulary.tiny()
IMAGE = Vision.image(np.array([[7]]))
CLIP = Vision.clip(np.array([[[7]], [[7]]]), fps=8, seconds=1)
SYMBOLS = {
    "^": V.bos,
    "$": V.eos,
    "[": V.vision_start,
    "#": V.codes_follow,
    "%": V.first_code + 7,
    "|": V.end_of_line,
    "~": V.end_of_frame,
    "]": V.vision_end,
}


def asked(questions, answers):
    """A turn for each letter."""
    return [Turn([question], answer) for question, answer in zip(questions, answers, strict=True)]


# fmt: off
TABLE = {
    "1 turn": (
        [Turn(["a"], "b")],
        "^You are a helpful assistant. USER: a. ASSISTANT:b$",
        "                                                 ++",
    ),
    "2 turns, an image in front": (
        [Turn([IMAGE, "a"], "b"), Turn(["c"], "dd")],
        "^You are a helpful assistant. USER: [1*1#%|~]a. ASSISTANT:b$ USER: c. ASSISTANT:dd$",
        "                                                          ++                    +++",
    ),
    "3 turns, an image in the middle of the second": (
        [Turn(["a"], "b"), Turn(["c ", IMAGE, " d"], "e"), Turn(["f"], "g")],
        "^You are a helpful assistant. USER: a. ASSISTANT:b$ USER: c [1*1#%|~] d. ASSISTANT:e$"
        " USER: f. ASSISTANT:g$",
        "                                                 ++                                ++"
        "                    ++",
    ),
    "4 turns, two images side by side, and one behind the text": (
        [Turn([IMAGE, IMAGE, "a"], "b"), *asked("ce", "df"), Turn(["g", IMAGE], "h")],
        "^You are a helpful assistant. USER: [1*1#%|~][1*1#%|~]a. ASSISTANT:b$"
        " USER: c. ASSISTANT:d$ USER: e. ASSISTANT:f$ USER: g[1*1#%|~]. ASSISTANT:h$",
        "                                                                   ++"
        "                    ++                    ++                             ++",
    ),
    "5 turns, a clip": (
        [Turn([CLIP, "a"], "b"), *asked("cdef", "CDEF")],
        "^You are a helpful assistant. USER: [1*1*2 8fps 1s#%|~%|~]a. ASSISTANT:b$"
        " USER: c. ASSISTANT:C$ USER: d. ASSISTANT:D$ USER: e. ASSISTANT:E$ USER: f. ASSISTANT:F$",
        "                                                                       ++"
        "                    ++                    ++                    ++                    ++",
    ),
    "6 turns": (
        asked("abcdef", "ABCDEF"),
        "^You are a helpful assistant. USER: a. ASSISTANT:A$ USER: b. ASSISTANT:B$"
        " USER: c. ASSISTANT:C$ USER: d. ASSISTANT:D$ USER: e. ASSISTANT:E$ USER: f. ASSISTANT:F$",
        "                                                 ++                    ++"
        "                    ++                    ++                    ++                    ++",
    ),
    "7 turns, an image alone is a question": (
        [*asked("abcdef", "ABCDEF"), Turn([IMAGE], "x")],
        "^You are a helpful assistant. USER: a. ASSISTANT:A$ USER: b. ASSISTANT:B$"
        " USER: c. ASSISTANT:C$ USER: d. ASSISTANT:D$ USER: e. ASSISTANT:E$ USER: f. ASSISTANT:F$"
        " USER: [1*1#%|~]. ASSISTANT:x$",
        "                                                 ++                    ++"
        "                    ++                    ++                    ++                    ++"
        "                            ++",
    ),
    "8 turns, images in the first and the last": (
        [Turn([IMAGE, "a"], "A"), *asked("bcdefg", "BCDEFG"), Turn(["h", IMAGE], "H")],
        "^You are a helpful assistant. USER: [1*1#%|~]a. ASSISTANT:A$ USER: b. ASSISTANT:B$"
        " USER: c. ASSISTANT:C$ USER: d. ASSISTANT:D$ USER: e. ASSISTANT:E$ USER: f. ASSISTANT:F$"
        " USER: g. ASSISTANT:G$ USER: h[1*1#%|~]. ASSISTANT:H$",
        "                                                          ++                    ++"
        "                    ++                    ++                    ++                    ++"
        "                    ++                             ++",
    ),
}
# fmt: on


@pytest.fixture(params=TABLE.values(), ids=TABLE)
def case(request):
    turns, line, marks = request.param
    tokens = [SYMBOLS.get(symbol, ord(symbol)) for symbol in line]
    return turns, tokens, [mark == "+" for mark in marks]


def test_tokens_and_roles(case):
    turns, tokens, trained = case

    document = dialogue(V, turns)

    assert document.tokens.tolist() == tokens
    roles = [span.trained for span in document.spans for _ in span.tokens]
    assert roles == trained


def test_labels_of_a_row(case):
    """The label at a position is the next token."""
    turns, tokens, trained = case
    document = dialogue(V, turns)
    context = np.concatenate([np.full(len(s.tokens), not s.trained) for s in document.spans])
    piece = Piece(document.tokens, context, "shard", 0)

    batch = RowBuilder(V, 512, CLASS_WEIGHTS).batch([[piece]])

    labels = [
        token if is_trained else IGNORE for token, is_trained in zip(tokens, trained, strict=True)
    ]
    assert batch.labels[0, : len(tokens) - 1].tolist() == labels[1:]
    assert (batch.labels[0, len(tokens) - 1 :] == IGNORE).all()
    assert ((batch.weights[0] == 1) == (batch.labels[0] != IGNORE)).all()


def test_a_prompt_is_the_beginning_of_the_dialogue(case):
    """What the model goes on from when it answers the last turn is what it was trained behind."""
    turns, tokens, _ = case
    *before, last = turns

    prompt = dialogue(V, [*before, Turn(last.question, None)])

    assert prompt.tokens.tolist() == tokens[: len(prompt)]
    assert bytes(prompt.tokens[-11:].tolist()) == b" ASSISTANT:"
    assert len(prompt) == len(tokens) - len(last.answer) - 1
