"""Batches: labels, weights and segments by hand, and an order that no layout changes."""

import itertools

import numpy as np
import pytest
import torch

from emu3_megatron.context_parallel.dispatch import dispatch
from emu3_megatron.data.batches import IGNORE, PackedSamples, step_batches
from emu3_megatron.data.mixture import Mixture
from emu3_megatron.data.shards.sidecar import shard_file
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import Document, Span, plain_text

TABLE = (1.0, 0.25, 0.5)  # text, structure, code
CONTEXT = 16


@pytest.fixture
def row(make_packs, vocabulary):
    """One row: an image of one code (10 tokens), then `BOS x EOS`, then 3 tokens of padding."""
    v = vocabulary
    vision = [v.vision_start, *b"1*1", v.codes_follow, v.first_code + 7]
    vision += [v.end_of_line, v.end_of_frame, v.vision_end]
    image = Document((Span(np.array([v.bos], np.int32)), Span(np.array(vision, np.int32))))
    packs = make_packs([image, plain_text(v, "x")], CONTEXT)
    samples = PackedSamples(Mixture([packs], [1]), v, TABLE)
    return samples[0]


@pytest.fixture
def samples(make_packs, make_text, vocabulary):
    """Twelve packs of one text each."""
    texts = [plain_text(vocabulary, letter * 50) for letter in "abcdefghijkl"]
    return PackedSamples(Mixture([make_packs(texts, 64)], [1]), vocabulary, TABLE)


def run(samples, data_size=1, micro_batch=1, first_step=0, workers=0):
    """Tokens of steps `first_step` to 3, each [8, s], the ranks' parts put together."""
    ranks = [
        step_batches(
            samples,
            global_batch=8,
            micro_batch=micro_batch,
            data_rank=rank,
            data_size=data_size,
            first_step=first_step,
            last_step=4,
            workers=workers,
        )
        for rank in range(data_size)
    ]
    return [
        torch.cat([batch.tokens for rank in step for batch in rank])
        for step in zip(*ranks, strict=True)
    ]


def assert_same_steps(steps, expected):
    assert len(steps) == len(expected)
    for tokens, expected_tokens in zip(steps, expected, strict=True):
        assert torch.equal(tokens, expected_tokens)


def test_tokens_and_padding(row, vocabulary):
    v = vocabulary
    vision = [v.vision_start, *b"1*1", v.codes_follow, v.first_code + 7]
    vision += [v.end_of_line, v.end_of_frame, v.vision_end]
    assert row.tokens.tolist() == [[v.bos, *vision, v.bos, *b"x", v.eos, v.pad, v.pad, v.pad]]


def test_labels_are_the_next_token_of_the_same_document(row, vocabulary):
    tokens = row.tokens[0].tolist()
    none = [IGNORE]
    assert row.labels[0].tolist() == [*tokens[1:10], *none, *tokens[11:13], *4 * none]


def test_weights_follow_labels(row):
    t, s, c = TABLE
    #           BOI 1  *  1  SOT code EOL EOF EOI end  x  EOS end  padding
    expected = [s, t, t, t, s, c, s, s, s, 0, t, t, 0, 0, 0, 0]
    assert row.weights[0].tolist() == expected


def test_segments_positions_and_boundaries(row):
    assert row.segments[0].tolist() == [0] * 10 + [1] * 3 + [2] * 3
    assert row.positions[0].tolist() == [*range(10), *range(3), *range(3)]
    assert row.boundaries[0].tolist() == [0, 10, 13, 16]


def test_a_row_knows_its_documents(row, tmp_path):
    shard = str(tmp_path / "train")
    assert row.documents == [[(shard, 0), (shard, 1)]]


def test_shapes_and_dtypes(row):
    for name in ("tokens", "labels", "positions"):
        assert getattr(row, name).dtype == torch.int64
    assert row.weights.dtype == torch.float32
    assert row.segments.dtype == torch.int32
    assert row.boundaries[0].dtype == torch.int32


def test_every_row_is_shared_out_over_context_parallel_ranks(make_packs, make_text, vocabulary):
    packs = make_packs([make_text(7), make_text(5), make_text(12)], 24)
    samples = PackedSamples(Mixture([packs], [1]), vocabulary, TABLE, context_size=4)
    batch = samples.batch([0])

    assert batch.order.dtype == torch.int64
    order_cs = dispatch(batch.boundaries[0].numpy(), 4)
    assert batch.order.tolist() == [order_cs.tolist()]


def test_one_rank_holds_all_tokens_in_order(row):
    assert row.order.tolist() == [[list(range(CONTEXT))]]


def test_context_spans_weigh_nothing(make_packs, answered, vocabulary):
    samples = PackedSamples(Mixture([make_packs([answered], 8)], [1]), vocabulary, TABLE)
    # `why?` is context and `so.` trained: the label of `?` is the first that counts.
    assert samples[0].weights[0].tolist() == [0, 0, 0, 1, 1, 1, 0, 0]
    assert (samples[0].labels[0] == IGNORE).tolist() == [True] * 3 + [False] * 3 + [True] * 2


def test_without_reset_a_row_is_one_segment(make_packs, make_text, vocabulary):
    packs = make_packs([make_text(6), make_text(4)], 12)
    row = PackedSamples(Mixture([packs], [1]), vocabulary, TABLE, reset_at_documents=False)[0]

    assert row.segments[0].tolist() == [0] * 12
    assert row.positions[0].tolist() == list(range(12))
    assert row.boundaries[0].tolist() == [0, 12]
    assert row.weights[0].tolist() == [1] * 5 + [0] + [1] * 3 + [0] * 3


@pytest.mark.parametrize(("data_size", "micro_batch"), [(1, 4), (2, 1), (2, 4), (4, 2)])
def test_order_depends_on_no_layout(samples, data_size, micro_batch):
    assert_same_steps(run(samples, data_size, micro_batch), run(samples))


def test_resumed_run_is_the_tail_of_the_full_one(samples):
    assert_same_steps(run(samples, first_step=2), run(samples)[2:])


def test_workers_change_nothing(samples):
    assert_same_steps(run(samples, micro_batch=4, workers=2), run(samples, micro_batch=4))


def test_an_epoch_shows_every_pack_once(samples):
    epoch = torch.cat([samples[k].tokens for k in range(12)])
    assert len(epoch.unique(dim=0)) == 12


def test_epochs_differ_in_order(samples):
    first, second = (torch.cat([samples[12 * e + k].tokens for k in range(12)]) for e in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_id_is_one_clean_error(make_packs, make_text, vocabulary, tmp_path, workers):
    packs = make_packs([make_text(50)], 64)
    samples = PackedSamples(Mixture([packs], [1]), vocabulary, TABLE)
    with shard_file(tmp_path / "train", "bin").open("r+b") as file:  # after it was opened
        file.write(np.int32(979).tobytes())
    steps = step_batches(
        samples,
        global_batch=1,
        micro_batch=1,
        data_rank=0,
        data_size=1,
        first_step=0,
        last_step=1,
        workers=workers,
    )

    with pytest.raises(InputError, match=r"^[^\n]*train\.bin: document 0 holds id 979[^\n]*$"):
        next(steps)


def test_batch_that_does_not_divide_is_refused(samples):
    with pytest.raises(InputError, match=r"batch\.size=8 must be a multiple of .*3 times 1"):
        run(samples, micro_batch=3)


def test_steps_are_lists_of_micro_batches(samples):
    steps = step_batches(
        samples,
        global_batch=8,
        micro_batch=2,
        data_rank=1,
        data_size=2,
        first_step=0,
        last_step=1,
    )
    (step,) = itertools.islice(steps, 2)
    assert [batch.tokens.shape for batch in step] == [(2, 64), (2, 64)]
