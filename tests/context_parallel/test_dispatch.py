"""Dispatch: every token once, even work, few keys to exchange, at any border."""

import time

import numpy as np
import pytest
from balance import Balance
from simulated_packs import CONTEXT, simulated_packs

from emu3_megatron.context_parallel.dispatch import dispatch
from emu3_megatron.errors import InputError

AWKWARD = {
    "one document": [0, 1024],
    "one-token documents": list(range(1025)),
    "400 tiny documents and padding": [*range(0, 801, 2), 1024],
    "borders on block edges": [0, 128, 512, 1024],
    "borders beside block edges": [0, 127, 129, 511, 513, 1023, 1024],
    "a long tail": [0, 3, 1024],
    "odd length": [0, 100, 104, 999],
    "a share that is prime": [0, 50, 202],
    "fewer tokens than blocks": [0, 1, 4],
}


def assert_shares_out(order_cs, tokens, ranks):
    """Every token once, in equal shares, ascending in each."""
    assert order_cs.shape == (ranks, tokens // ranks)
    assert order_cs.dtype == np.int64
    assert np.sort(order_cs, axis=None).tolist() == list(range(tokens))
    assert (np.diff(order_cs, axis=1) > 0).all()


@pytest.mark.parametrize("boundaries", AWKWARD.values(), ids=AWKWARD)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_every_token_once_in_equal_shares(boundaries, ranks):
    if boundaries[-1] % ranks:
        pytest.skip("does not divide")
    assert_shares_out(dispatch(boundaries, ranks), boundaries[-1], ranks)


@pytest.mark.parametrize("ranks", [2, 4, 8, 16])
@pytest.mark.parametrize("kind", ["image", "mixed", "video", "text"])
def test_full_packs_are_balanced(kind, ranks):
    for boundaries in simulated_packs(kind, 3):
        order_cs = dispatch(boundaries, ranks)
        assert_shares_out(order_cs, CONTEXT, ranks)
        assert Balance.of(boundaries, order_cs).work_max_over_mean <= 1.02


@pytest.mark.parametrize("ranks", [32, 64])
@pytest.mark.parametrize("kind", ["image", "mixed", "video", "text", "fitted"])
def test_many_ranks_are_balanced_too(kind, ranks):
    for boundaries in simulated_packs(kind, 4):
        assert Balance.of(boundaries, dispatch(boundaries, ranks)).work_max_over_mean <= 1.02


@pytest.mark.parametrize("ranks", [2, 8, 64])
@pytest.mark.parametrize(("kind", "most"), [("image", 0.20), ("mixed", 0.75), ("text", 0.32)])
def test_ranks_exchange_a_part_of_the_ring(kind, most, ranks):
    for boundaries in simulated_packs(kind, 4):
        assert Balance.of(boundaries, dispatch(boundaries, ranks)).exchange_fraction <= most


def test_one_long_document_is_a_zigzag():
    assert dispatch([0, 64], 2).tolist() == [[*range(16), *range(48, 64)], [*range(16, 48)]]


def test_equal_documents_stay_whole_on_their_rank():
    order_cs = dispatch(range(0, 257, 32), 4)

    assert order_cs.tolist() == np.arange(256).reshape(4, 64).tolist()
    assert Balance.of(np.arange(0, 257, 32), order_cs).exchange_fraction == 0


def test_the_same_pack_is_shared_out_the_same():
    boundaries = simulated_packs("mixed", 1)[0]
    first = dispatch(boundaries, 8)

    assert np.array_equal(dispatch(boundaries.astype(np.int32), 8), first)
    assert np.array_equal(dispatch(boundaries.tolist(), 8), first)


def test_a_pack_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match=r"make data\.context a multiple of 4"):
        dispatch([0, 102], 4)


@pytest.mark.parametrize("ranks", [8, 64])
@pytest.mark.parametrize("kind", ["mixed", "video"])
def test_a_full_pack_takes_milliseconds(kind, ranks):
    packs = simulated_packs(kind, 4)

    def seconds():
        begin = time.process_time()
        for boundaries in packs:
            dispatch(boundaries, ranks)
        return time.process_time() - begin

    # About 1 on a calm machine; the rest is for busy ones.
    assert min(seconds() for _ in range(3)) / len(packs) < 0.008
