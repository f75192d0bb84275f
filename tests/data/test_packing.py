"""Packing: as good as best fit one by one, no token lost, only text cut, caps respected."""

import numpy as np
import pytest

from emu3_megatron.data.packing.bestfit import best_fit, lower_bound
from emu3_megatron.data.packing.packing import pack_pieces
from emu3_megatron.data.packing.pieces import Pieces


def best_fit_one_by_one(lengths, capacity):
    """Bins that best-fit-decreasing needs, the plain way."""
    residuals = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, residual in enumerate(residuals) if residual >= length]
        if fitting:
            best = min(fitting, key=residuals.__getitem__)
            residuals[best] -= length
        else:
            residuals.append(capacity - length)
    return len(residuals)


def random_lengths(seed):
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(5, 1500))
    return rng.integers(1, capacity + 1, rng.integers(1, 150)), capacity


def packs_of(packing):
    """The document numbers in each pack."""
    return [part.tolist() for part in np.split(packing.pieces.documents, packing.offsets[1:-1])]


def assert_every_token_once(packing, lengths):
    pieces = packing.pieces
    order = np.lexsort((pieces.starts, pieces.documents))
    begins = (np.cumsum(lengths) - lengths)[pieces.documents[order]] + pieces.starts[order]
    ends = begins + pieces.lengths[order]
    assert begins[0] == 0
    assert ends[-1] == lengths.sum()
    np.testing.assert_array_equal(begins[1:], ends[:-1])


@pytest.mark.parametrize("seed", range(20))
def test_as_many_bins_as_best_fit_one_by_one(seed):
    lengths, capacity = random_lengths(seed)
    pieces = Pieces.whole(lengths, np.zeros(len(lengths), bool))

    packing = pack_pieces(pieces, capacity)

    assert len(packing) == best_fit_one_by_one(lengths, capacity)
    assert_every_token_once(packing, lengths)


@pytest.mark.parametrize("seed", range(20))
def test_cut_text_keeps_every_token_once_and_no_pack_overflows(seed):
    lengths, capacity = random_lengths(seed)
    pieces = Pieces.whole(lengths, np.random.default_rng(seed).random(len(lengths)) < 0.6)

    packing = pack_pieces(pieces, capacity, max_documents=6)

    assert_every_token_once(packing, lengths)
    assert np.add.reduceat(packing.pieces.lengths, packing.offsets[:-1]).max() <= capacity
    assert np.diff(packing.offsets).max() <= 6


@pytest.fixture(scope="module")
def mixed():
    """700 images that leave gaps of up to 920 tokens at a context of 5,120, and 2,000 texts."""
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(4200, 4400, 700), rng.integers(100, 3000, 2000)])
    return Pieces.whole(lengths, np.arange(2700) >= 700)


def test_cut_text_fills_the_gaps(mixed):
    uncut = pack_pieces(mixed, 5120, cut_text=False)
    packing = pack_pieces(mixed, 5120)

    assert uncut.fill < 0.98
    assert packing.fill > 0.998
    assert_every_token_once(packing, mixed.lengths)


def test_only_text_is_cut_and_no_cut_leaves_slivers(mixed):
    packing = pack_pieces(mixed, 5120)

    is_cut = np.bincount(packing.pieces.documents)[packing.pieces.documents] > 1
    assert is_cut.any()
    assert packing.pieces.documents[is_cut].min() >= 700
    assert packing.pieces.lengths[is_cut].min() >= 64


def test_without_cut_text_nothing_is_cut(mixed):
    assert len(pack_pieces(mixed, 5120, cut_text=False).pieces) == len(mixed)


def test_the_seed_decides_the_order(mixed):
    one, again, other = (packs_of(pack_pieces(mixed, 5120, seed=seed)) for seed in (1, 1, 2))
    assert one == again
    assert one != other


def test_cap_on_documents():
    pieces = Pieces.whole(np.full(100, 10), np.ones(100, bool))

    packing = pack_pieces(pieces, 1000, max_documents=8)

    assert np.diff(packing.offsets).max() == 8
    assert len(packing) == 13


@pytest.mark.parametrize(
    ("lengths", "bound"),
    [([6, 6, 6], 3), ([5, 5, 5], 2), ([7, 4, 4, 4], 3), ([8, 3, 3, 3, 3], 3), ([1], 1)],
)
def test_lower_bound(lengths, bound):
    assert lower_bound(np.bincount(lengths, minlength=11), 10) == bound


def test_cost_depends_on_different_lengths_only():
    histogram = np.zeros(5121, np.int64)
    histogram[[700, 1400, 4262]] = 1
    few, _ = best_fit([histogram], 5120, 256)
    many, bins = best_fit([histogram * 10**6], 5120, 256)

    assert len(many.first) <= len(few.first) + 6
    assert bins.pieces.sum() == 3 * 10**6
