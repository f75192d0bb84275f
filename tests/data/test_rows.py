"""Rows: tokens, labels, weights, positions and boundaries by hand."""

import numpy as np
import pytest
import torch

from emu3_megatron.context_parallel.dispatch import dispatch
from emu3_megatron.data.batches import IGNORE, Batch, DocumentRef
from emu3_megatron.data.rows import RowBuilder
from emu3_megatron.data.source import Piece
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import Document, Span, plain_text

WEIGHTS = {"text": 1.0, "structure": 0.25, "code": 0.5}
CONTEXT = 16


@pytest.fixture
def pieces(vocabulary):
    """A function that makes pieces of documents, whole ones of one shard."""

    def make(*documents):
        return [
            Piece(
                tokens=document.tokens,
                context=np.repeat(
                    [not span.trained for span in document.spans],
                    [len(span.tokens) for span in document.spans],
                ),
                source="shard",
                document=number,
            )
            for number, document in enumerate(documents)
        ]

    return make


@pytest.fixture
def image(vocabulary):
    """An image of one code: 10 tokens, BOS among them."""
    v = vocabulary
    vision = [v.vision_start, *b"1*1", v.codes_follow, v.first_code + 7]
    vision += [v.end_of_line, v.end_of_frame, v.vision_end]
    return Document((Span(np.array([v.bos], np.int32)), Span(np.array(vision, np.int32))))


@pytest.fixture
def row(pieces, image, vocabulary):
    """One row: the image, then `BOS x EOS`, then 3 tokens of padding."""
    builder = RowBuilder(vocabulary, CONTEXT, WEIGHTS)
    return builder.batch([pieces(image, plain_text(vocabulary, "x"))])


def test_tokens_and_padding(row, image, vocabulary):
    v = vocabulary
    assert row.tokens.tolist() == [[*image.tokens, v.bos, *b"x", v.eos, v.pad, v.pad, v.pad]]


def test_labels_are_the_next_token_of_the_same_document(row, vocabulary):
    tokens = row.tokens[0].tolist()
    none = [IGNORE]
    assert row.labels[0].tolist() == [*tokens[1:10], *none, *tokens[11:13], *4 * none]


def test_weights_follow_labels(row):
    t, s, c = WEIGHTS.values()
    #           BOI 1  *  1  SOT code EOL EOF EOI end  x  EOS end  padding
    expected = [s, t, t, t, s, c, s, s, s, 0, t, t, 0, 0, 0, 0]
    assert row.weights[0].tolist() == expected


def test_positions_and_boundaries(row):
    assert row.positions[0].tolist() == [*range(10), *range(3), *range(3)]
    assert row.boundaries[0].tolist() == [0, 10, 13, 16]


def test_a_full_row_has_no_padding(pieces, make_text, vocabulary):
    batch = RowBuilder(vocabulary, 12, WEIGHTS).batch([pieces(make_text(7), make_text(5))])

    assert batch.boundaries[0].tolist() == [0, 7, 12]


def test_a_row_knows_its_documents(pieces, make_text, vocabulary):
    chosen, rejected = (
        piece._replace(group=4, side=side)
        for side, piece in enumerate(pieces(make_text(5), make_text(6)))
    )

    batch = RowBuilder(vocabulary, CONTEXT, WEIGHTS).batch([[chosen, rejected]])

    assert batch.documents == [[("shard", 0, 4, 0), ("shard", 1, 4, 1)]]
    assert isinstance(batch.documents[0][0], DocumentRef)


def test_shapes_and_dtypes(row):
    for name in ("tokens", "labels", "positions"):
        assert getattr(row, name).dtype == torch.int64
    assert row.weights.dtype == torch.float32
    assert row.boundaries[0].dtype == torch.int32
    assert (row.columns, row.inputs) == ({}, None)


def test_every_row_is_shared_out_over_context_parallel_ranks(pieces, make_text, vocabulary):
    builder = RowBuilder(vocabulary, 24, WEIGHTS, context_size=4)
    batch = builder.batch([pieces(make_text(7), make_text(5), make_text(12))])

    assert batch.order.dtype == torch.int64
    order_cs = dispatch(batch.boundaries[0].numpy(), 4)
    assert batch.order.tolist() == [order_cs.tolist()]


def test_one_rank_holds_all_tokens_in_order(row):
    assert row.order.tolist() == [[list(range(CONTEXT))]]


def test_context_spans_weigh_nothing(pieces, answered, vocabulary):
    batch = RowBuilder(vocabulary, 8, WEIGHTS).batch([pieces(answered)])
    # `why?` is context and `so.` trained: the label of `?` is the first that counts.
    assert batch.weights[0].tolist() == [0, 0, 0, 1, 1, 1, 0, 0]
    assert (batch.labels[0] == IGNORE).tolist() == [True] * 3 + [False] * 3 + [True] * 2


def test_without_reset_a_row_is_as_one_document(pieces, make_text, vocabulary):
    builder = RowBuilder(vocabulary, 12, WEIGHTS, reset_at_documents=False)
    row = builder.batch([pieces(make_text(6), make_text(4))])

    assert row.positions[0].tolist() == list(range(12))
    assert row.boundaries[0].tolist() == [0, 12]
    assert row.weights[0].tolist() == [1] * 5 + [0] + [1] * 3 + [0] * 3


def test_a_class_that_is_not_named_weighs_nothing(pieces, image, vocabulary):
    batch = RowBuilder(vocabulary, 10, {"code": 2.0}).batch([pieces(image)])

    assert batch.weights[0].tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 0]


def test_a_class_that_the_vocabulary_does_not_have_is_refused(vocabulary):
    with pytest.raises(InputError, match="weights: no class 'audio'; choose one of text, str"):
        RowBuilder(vocabulary, CONTEXT, {"audio": 1.0})


@pytest.mark.parametrize("bad", [-1, 979])
def test_an_id_outside_the_vocabulary_is_named(bad, vocabulary):
    piece = Piece(np.array([5, bad, 6]), None, "third", 8)

    with pytest.raises(InputError, match=f"third: document 8 holds id {bad}, the vocabulary has"):
        RowBuilder(vocabulary, CONTEXT, WEIGHTS).batch([[piece]])


def test_a_row_longer_than_the_context_is_named(pieces, make_text, vocabulary):
    with pytest.raises(InputError, match="a row of 17 tokens, from shard; a source's rows have"):
        RowBuilder(vocabulary, CONTEXT, WEIGHTS).batch([pieces(make_text(9), make_text(8))])


class Pinned:
    """Stands in for a tensor, and for inputs."""

    def __init__(self):
        self.is_pinned = False

    def pin_memory(self):
        pinned = Pinned()
        pinned.is_pinned = True
        return pinned


def test_pinning_covers_columns_and_inputs():
    fields = dict.fromkeys(("tokens", "labels", "weights", "positions", "order", "inputs"))
    values = {name: Pinned() for name in fields}
    batch = Batch(
        **values, boundaries=[Pinned()], documents=[[]], columns={"advantages": Pinned()}
    ).pin_memory()

    pinned = [getattr(batch, name) for name in fields]
    pinned += [*batch.boundaries, batch.columns["advantages"]]
    assert all(value.is_pinned for value in pinned)
