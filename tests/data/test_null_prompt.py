"""Captions that leave the row: of which documents, and what the row is then."""

import numpy as np
import pytest
import torch
from support.batches import reader

from emu3_megatron.config.data import MixtureConfig
from emu3_megatron.config.training import BatchConfig
from emu3_megatron.data.batches import IGNORE
from emu3_megatron.data.mixed import MixtureData
from emu3_megatron.data.null_prompt import NullPrompt, caption_end
from emu3_megatron.data.setting import Setting
from emu3_megatron.data.source import Piece
from emu3_megatron.grammar import Turn, Vision, captioned_clip, dialogue, understanding

WEIGHTS = {"text": 1.0, "structure": 0.25, "code": 0.5}


@pytest.fixture
def open_data(vocabulary):
    """A function that opens a mixture of one pack folder, four sequences a step."""

    def make(packs, null_prompt, seed=0, workers=0):
        source = {"pack": str(packs.path)}
        values = {"context": packs.context, "sources": [source], "workers": workers}
        section = MixtureConfig.model_validate({**values, "null_prompt": null_prompt})
        setting = Setting(vocabulary, BatchConfig(size=4), seed, WEIGHTS)
        return MixtureData(section, setting)

    return make


def step(data, data_size=1):
    """The batches of a first step, all ranks' in order."""
    ranks = [next(data.batches(reader(rank, data_size), 0, 1)) for rank in range(data_size)]
    return [batch for rank in ranks for batch in rank]


def rows(batches):
    return torch.cat([batch.tokens for batch in batches])


def piece_of(document, **values):
    context = np.repeat(
        [not span.trained for span in document.spans], [len(span.tokens) for span in document.spans]
    )
    return Piece(document.tokens, context, "shard", 0)._replace(**values)


# The row


def test_the_row_token_by_token(open_data, make_packs, make_image, make_text, vocabulary):
    """A captioned image of 29 tokens, 5 of them its caption, and a text of 30 in a row of 64."""
    v = vocabulary
    packs = make_packs([make_image("a cat"), make_text(30)], 64)

    batch = step(open_data(packs, null_prompt=1))[0]

    first, second = packs.row(0)
    image, text = sorted((first.tokens, second.tokens), key=lambda t: v.vision_start not in t)
    shorter = [v.bos, *image[6:]]
    order = [shorter, text] if first.tokens is image else [text, shorter]
    tokens = [int(token) for part in order for token in part]
    begin = len(order[0])
    assert batch.tokens[0].tolist() == tokens + [v.pad] * (64 - len(tokens))
    labels = batch.labels[0].tolist()
    assert labels[: begin - 1] == tokens[1:begin]
    assert labels[begin : len(tokens) - 1] == tokens[begin + 1 :]
    assert labels[begin - 1] == labels[len(tokens) - 1] == IGNORE
    assert set(labels[len(tokens) :]) == {IGNORE}
    assert batch.weights[0, len(tokens) :].tolist() == [0] * (64 - len(tokens))
    assert batch.boundaries[0].tolist() == [0, begin, len(tokens), 64]
    padding = 64 - len(tokens)
    expected = [*range(begin), *range(len(tokens) - begin), *range(padding)]
    assert batch.positions[0].tolist() == expected


def test_the_first_label_is_the_mark_of_the_image(open_data, make_packs, make_image, vocabulary):
    batch = step(open_data(make_packs([make_image("a cat")], 64), null_prompt=1))[0]

    assert batch.tokens[0, 0] == vocabulary.bos
    assert batch.labels[0, 0] == vocabulary.vision_start
    assert batch.weights[0, 0] == WEIGHTS["structure"]


def test_without_it_rows_are_those_of_the_packs(open_data, make_packs, make_image):
    packs = make_packs([make_image("a cat"), make_image("a dog")], 64)

    for batch in step(open_data(packs, null_prompt=0)):
        tokens = np.concatenate([piece.tokens for piece in packs.row(0)])
        assert batch.tokens[0, : len(tokens)].tolist() == tokens.tolist()


# Which documents


def test_the_share_is_right(make_image, vocabulary):
    piece = piece_of(make_image("a cat"))
    drop = NullPrompt(vocabulary, 0.05, seed=7)

    shorter = [
        len(kept.tokens) < len(piece.tokens)
        for sequence in range(2000)
        for kept in drop([piece] * 10, sequence)
    ]

    # Of 20,000 at 5%: four standard deviations are 0.6%.
    assert np.mean(shorter) == pytest.approx(0.05, abs=0.006)


def test_documents_of_a_sequence_are_chosen_apart_and_seeds_differ(make_image, vocabulary):
    pieces = [piece_of(make_image("a cat"))] * 8

    def lengths(seed, sequence):
        return [len(p.tokens) for p in NullPrompt(vocabulary, 0.5, seed)(pieces, sequence)]

    assert len(set(lengths(0, 0))) == 2
    assert lengths(0, 0) != lengths(1, 0)
    assert lengths(0, 0) != lengths(0, 1)


def test_which_documents_never_changes(make_image, vocabulary):
    """A run that resumes with another version of anything must choose the same."""
    pieces = [piece_of(make_image("a cat"))] * 12
    drop = NullPrompt(vocabulary, 0.3, seed=5)

    chosen = [i for i, piece in enumerate(drop(pieces, 1000)) if len(piece.tokens) == 24]

    assert chosen == [0, 6, 9, 11]


@pytest.mark.parametrize("data_size", [2, 4])
def test_every_layout_and_worker_chooses_the_same(open_data, make_packs, make_image, data_size):
    packs = make_packs([make_image(f"number {i}") for i in range(9)], 80)
    expected = rows(step(open_data(packs, null_prompt=0.5)))

    assert torch.equal(rows(step(open_data(packs, null_prompt=0.5), data_size)), expected)
    assert torch.equal(rows(step(open_data(packs, null_prompt=0.5, workers=2))), expected)
    assert not torch.equal(rows(step(open_data(packs, null_prompt=0))), expected)


def test_a_clip_has_a_caption_too(vocabulary):
    clip = captioned_clip(vocabulary, "a dog", np.zeros((2, 3, 4), int), 8.0, 1.0)

    assert caption_end(piece_of(clip), vocabulary) == 6


def test_documents_without_a_caption_to_take_out(make_image, make_text, vocabulary):
    codes = np.zeros((3, 4), int)
    image = make_image("a cat")
    unlearned = piece_of(image, context=np.ones(len(image), bool))
    never = {
        "text": piece_of(make_text(9)),
        "an image that comes first": piece_of(understanding(vocabulary, codes, "a cat")),
        "a dialogue, whose question is context": piece_of(
            dialogue(vocabulary, [Turn([Vision.image(codes), "what is it"], "a cat")])
        ),
        "context": unlearned,
        "begins inside its document": piece_of(image, start=1),
        "one of a pair": piece_of(image, group=0, side=1),
        "cut before its image": piece_of(image, tokens=image.tokens[:5], context=None),
    }

    for name, piece in never.items():
        assert caption_end(piece, vocabulary) is None, name
        assert NullPrompt(vocabulary, 1, 0)([piece], 0) == [piece], name


def test_what_follows_the_image_keeps_its_role(vocabulary, make_image):
    image = make_image("a cat")
    is_context = np.arange(len(image)) > 20
    piece = piece_of(image, context=is_context)

    (kept,) = NullPrompt(vocabulary, 1, 0)([piece], 0)

    assert kept.context.sum() == is_context.sum()
    assert len(kept.context) == len(kept.tokens) == len(image) - 5
