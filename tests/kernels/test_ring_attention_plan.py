"""Plans of a ring: every query sees its keys, nothing else travels, and both sides know it."""

import pytest
import torch
from emu3_kernels.ring_attention import RingPlan
from support.rings import PACKS, Pack, scattered_shares, visible


def seen_by(plan: RingPlan, tokens: int) -> torch.Tensor:
    """How often each query of a rank meets each token of the sequence, int [queries, tokens]."""
    seen = torch.zeros(len(plan.queries_t), tokens, dtype=torch.int64)
    for step in filter(lambda step: step.ranges is not None, plan.steps):
        places = torch.arange(len(step.keys_k))
        first, last = step.ranges.first_q[:, None], step.ranges.last_q[:, None]
        seen[:, step.keys_k] += ((first <= places) & (places < last)).long()
    return seen


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("pack", PACKS, ids=str)
def test_every_query_meets_each_key_it_sees_once_and_no_other(pack: Pack, ranks: int) -> None:
    shares = scattered_shares(pack.tokens, ranks, block=5)
    for rank, share in enumerate(shares):
        plan = RingPlan.build(shares, pack.boundaries, rank)
        assert torch.equal(seen_by(plan, pack.tokens), visible(pack, share).long())


@pytest.mark.parametrize("pack", PACKS, ids=str)
def test_only_keys_that_somebody_needs_travel(pack: Pack) -> None:
    shares = scattered_shares(pack.tokens, 4, block=5)
    for rank, share in enumerate(shares):
        plan = RingPlan.build(shares, pack.boundaries, rank)
        foreign = visible(pack, share).any(0)
        foreign[share] = False
        came = torch.cat([step.keys_k for step in plan.steps[1:]])
        assert torch.equal(came.sort().values, foreign.nonzero().flatten())


@pytest.mark.parametrize("pack", PACKS, ids=str)
def test_what_one_rank_sends_is_what_the_other_expects(pack: Pack) -> None:
    shares = scattered_shares(pack.tokens, 5, block=3)
    plans = [RingPlan.build(shares, pack.boundaries, rank) for rank in range(5)]
    for rank, plan in enumerate(plans):
        for number, step in enumerate(plan.steps[1:], start=1):
            theirs = plans[step.target].steps[number]
            assert theirs.source == rank
            assert torch.equal(shares[rank][step.sent_rows], theirs.keys_k)


def test_documents_of_one_rank_travel_nowhere() -> None:
    boundaries = torch.tensor([0, 10, 20, 30])
    shares = list(torch.arange(30).view(3, 10))
    for rank in range(3):
        plan = RingPlan.build(shares, boundaries, rank)
        assert plan.received_rows == 0
        assert [step.ranges for step in plan.steps[1:]] == [None, None]


def test_a_document_that_runs_on_needs_one_segment() -> None:
    """Blocks of other ranks between ours do not cut what we see of one rank into more pieces."""
    shares = [torch.arange(0, 8), torch.arange(8, 16), torch.arange(16, 24)]
    plan = RingPlan.build(shares, torch.tensor([0, 24]), rank=2)
    assert [len(step.ranges.segments) for step in plan.steps] == [1, 1, 1]


def test_tokens_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="ascending"):
        RingPlan.build([torch.tensor([0, 2, 1])], torch.tensor([0, 3]), 0)
