"""The mixture: shares, and an order that is a pure function of the seed."""

from collections import Counter

import pytest

from emu3_megatron.data.mixture import Mixture
from emu3_megatron.errors import InputError


@pytest.fixture
def sources(make_packs, make_text):
    """Three packs and five packs."""
    return [make_packs([make_text(60)] * n, 64, name) for n, name in ((3, "a"), (5, "b"))]


def test_shares_follow_the_weights(sources):
    mixture = Mixture(sources, [3, 1])
    shares = Counter(mixture[k][0].path.stem for k in range(1000))
    assert abs(shares["a"] - 750) <= 1


def test_shares_hold_beyond_the_period_of_the_order(sources):
    mixture = Mixture(sources, [3, 1])
    shares = Counter(mixture[k][0].path.stem for k in range(2**16 - 500, 2**16 + 500))
    assert abs(shares["a"] - 750) <= 2


def test_a_source_goes_through_its_packs_epoch_by_epoch(sources):
    mixture = Mixture(sources, [1, 1])
    packs = [pack for source, pack in (mixture[k] for k in range(40)) if source is sources[1]]
    for epoch in range(4):
        assert sorted(packs[5 * epoch : 5 * epoch + 5]) == [0, 1, 2, 3, 4]


def test_sequences_can_be_asked_for_in_any_order(sources):
    forwards, backwards = Mixture(sources, [3, 1]), Mixture(sources, [3, 1])
    expected = {k: forwards[k] for k in range(50)}
    assert {k: backwards[k] for k in reversed(range(50))} == expected


def test_seed_changes_the_order(sources):
    orders = [[Mixture(sources, [1, 1], seed)[k][1] for k in range(30)] for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_a_vanishing_weight_is_refused(sources):
    with pytest.raises(InputError, match="smallest is less than 1 sequence in 65,536"):
        Mixture(sources, [1e9, 1])


def test_a_weight_of_zero_is_refused(sources):
    with pytest.raises(InputError, match="must be above 0"):
        Mixture(sources, [1, 0])
