"""Segments to ranges of keys, and the same from the keys' side."""

import pytest
import torch
from emu3_kernels.attention_tile import KeyRanges
from emu3_kernels.attention_tile.segments import Piece

SEGMENTS = [(0, 2, 0, 2, 1), (3, 6, 2, 4, 1), (6, 7, 4, 6, 0)]


def visible(first, last):
    return [[*range(a, b)] for a, b in zip(first.tolist(), last.tolist(), strict=True)]


def test_ranges_by_hand():
    ranges = KeyRanges.of_segments(SEGMENTS, queries=8, keys=6)

    # Queries 2 and 7 are in no segment; query 3 is one too early for the keys of its segment.
    assert visible(ranges.first_q, ranges.last_q) == [
        [0], [0, 1], [], [], [2], [2, 3], [4, 5], [],
    ]  # fmt: skip
    assert (ranges.first_q.diff() >= 0).all()
    assert (ranges.last_q.diff() >= 0).all()
    assert visible(*ranges.by_key) == [[0, 1], [1], [4, 5], [5], [6], [6]]


def test_pieces_by_hand():
    wide = KeyRanges.of_segments([(0, 2, 0, 5, 1)], queries=2, keys=5)
    tall = KeyRanges.of_segments([(0, 5, 0, 2, 1)], queries=5, keys=2)

    assert [*wide.pieces()] == [
        Piece(slice(0, 2), slice(0, 3), causal=False),
        Piece(slice(0, 2), slice(3, 5), causal=True),
    ]
    assert [*tall.pieces()] == [Piece(slice(3, 5), slice(0, 2), causal=True)]


def test_heaviest_blocks_come_first():
    ranges = KeyRanges.of_segments([(0, 2, 0, 1, 0), (2, 5, 1, 9, 0), (5, 7, 9, 11, 0)], 7, 11)

    assert ranges.heaviest_first(3).tolist() == [1, 0, 2]
    assert ranges.heaviest_first(4, by_key=True).tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("segments", "complaint"),
    [
        ([(0, 9, 0, 2, 0)], "past 8 queries x 6 keys"),
        ([(0, 2, 0, 7, 0)], "past 8 queries x 6 keys"),
        ([(2, 4, 0, 2, 0), (0, 2, 2, 3, 0)], "out of order"),
        ([(0, 2, 3, 2, 0)], "ends before it begins"),
        ([(0, 2, 2, 3, 0), (2, 4, 0, 4, 0)], "never move back"),
    ],
)
def test_what_is_no_range_is_refused(segments, complaint):
    with pytest.raises(ValueError, match=complaint):
        KeyRanges.of_segments(segments, queries=8, keys=6)


def test_no_segment_is_a_mask_too():
    ranges = KeyRanges.of_segments(torch.empty(0, 5, dtype=torch.int64), queries=3, keys=2)

    assert visible(ranges.first_q, ranges.last_q) == [[], [], []]
    assert visible(*ranges.by_key) == [[], []]
