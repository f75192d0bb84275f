"""The ring computes what one device does, whatever dispatch, documents and dtype."""

from typing import Any

import pytest
import torch
from emu3_kernels.exchange import Exchange, GroupExchange, NoExchange
from emu3_kernels.ring_attention import RingDropout, RingPlan, ring_attention
from support.processes import run_processes
from support.rings import PACKS, Inputs, Pack, one_device, scattered_shares
from support.simulated_ranks import simulate

MIXED = Pack("mixed", (1, 37, 90, 1, 60, 3, 101), tail=7)
NAMES = ("out", "query", "key", "value")


def run_rank(
    exchange: Exchange,
    pack: Pack,
    inputs: Inputs,
    shares: list[torch.Tensor],
    **options: Any,
) -> list[torch.Tensor]:
    """One rank's out and gradients of query, key and value."""
    mine = inputs.of(shares[exchange.rank])
    plan = RingPlan.build(shares, pack.boundaries, exchange.rank)
    leaves = mine.leaves()
    out = ring_attention(*leaves, plan, exchange, scale=0.25, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, mine.dout)]


def whole(ranks: list[list[torch.Tensor]], shares: list[torch.Tensor]) -> list[torch.Tensor]:
    """What all ranks computed, in the order of the sequence."""
    order = torch.cat(shares).argsort()
    return [torch.cat(parts)[order] for parts in zip(*ranks, strict=True)]


def ring(pack: Pack, inputs: Inputs, ranks: int, **options: Any) -> list[torch.Tensor]:
    """Out and gradients of a whole pack over simulated ranks."""
    shares = scattered_shares(pack.tokens, ranks, block=5)
    results = simulate(ranks, lambda exchange: run_rank(exchange, pack, inputs, shares, **options))
    return whole(results, shares)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("pack", PACKS, ids=str)
def test_equal_to_one_device(pack: Pack, ranks: int) -> None:
    inputs = Inputs.random(pack.tokens)
    expected = one_device(pack, inputs)
    for name, found, right in zip(NAMES, ring(pack, inputs, ranks), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-12, msg=name)


def test_one_rank_needs_no_process_group() -> None:
    inputs = Inputs.random(MIXED.tokens)
    found = run_rank(NoExchange(), MIXED, inputs, [torch.arange(MIXED.tokens)])
    for part, right in zip(found, one_device(MIXED, inputs), strict=True):
        torch.testing.assert_close(part, right, rtol=1e-11, atol=1e-12)


def process(pack: Pack, inputs: Inputs, ranks: int) -> list[torch.Tensor]:
    """What one of several processes computes, as numpy arrays in fp64."""
    torch.distributed.init_process_group("gloo")
    shares = scattered_shares(pack.tokens, ranks, block=5)
    exchange = GroupExchange(torch.distributed.group.WORLD, point_to_point=True)
    results = run_rank(exchange, pack, inputs, shares)
    torch.distributed.destroy_process_group()
    return [tensor.double().numpy() for tensor in results]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ranks", [2, 4])
def test_processes_compute_what_simulated_ranks_do(ranks: int, dtype: torch.dtype) -> None:
    inputs = Inputs.random(MIXED.tokens, dtype)
    shares = scattered_shares(MIXED.tokens, ranks, block=5)
    processes = run_processes(process, ranks, MIXED, inputs, ranks)
    found = whole([[torch.from_numpy(part) for part in rank] for rank in processes], shares)
    for part, simulated in zip(found, ring(MIXED, inputs, ranks), strict=True):
        assert torch.equal(part, simulated.double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_same_bits_at_every_repeat(dtype: torch.dtype) -> None:
    inputs = Inputs.random(MIXED.tokens, dtype)
    first, second = ring(MIXED, inputs, 8), ring(MIXED, inputs, 8)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def relative_error(found: torch.Tensor, right: torch.Tensor) -> float:
    return ((found.double() - right).norm() / right.norm()).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_error_does_not_grow_with_the_ranks(dtype: torch.dtype) -> None:
    """The reference gives fp32 partial results: on 16 ranks it rounds as often as on one."""
    pack = Pack("one document", (256,))
    inputs = Inputs.random(pack.tokens, dtype)
    right = one_device(pack, inputs)
    alone, together = (ring(pack, inputs, ranks, backend="reference") for ranks in (1, 16))
    for name, one, many, exact in zip(NAMES, alone, together, right, strict=True):
        assert relative_error(many, exact) <= 1.02 * relative_error(one, exact), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounded_partial_results_cost_once_not_once_a_rank(dtype: torch.dtype) -> None:
    """torch's own kernels round what a tile gives; the sums over tiles are fp32 all the same."""
    pack = Pack("one document", (256,))
    inputs = Inputs.random(pack.tokens, dtype)
    right = one_device(pack, inputs)
    two, many = (ring(pack, inputs, ranks, backend="sdpa") for ranks in (2, 16))
    for name, few, more, exact in zip(NAMES, two, many, right, strict=True):
        assert relative_error(more, exact) <= 1.05 * relative_error(few, exact), name


def test_dropout_is_the_same_on_any_number_of_ranks() -> None:
    inputs = Inputs.random(MIXED.tokens)
    dropout = RingDropout(p=0.3, seed=5)
    without, alone = ring(MIXED, inputs, 1), ring(MIXED, inputs, 1, dropout=dropout)
    assert relative_error(alone[0], without[0]) > 0.1
    for ranks in (2, 4):
        for found, right in zip(ring(MIXED, inputs, ranks, dropout=dropout), alone, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-12)


def test_dropout_of_half_the_heads_is_half_of_the_dropout() -> None:
    """Tensor parallel ranks hold some heads each."""
    inputs = Inputs.random(MIXED.tokens)
    alone = ring(MIXED, inputs, 1, dropout=RingDropout(p=0.3, seed=5))
    half = Inputs(*(t[:, t.shape[1] // 2 :] for t in vars(inputs).values()))
    found = ring(MIXED, half, 2, dropout=RingDropout(p=0.3, seed=5, first_head=2))
    torch.testing.assert_close(found[0], alone[0][:, 2:], rtol=1e-11, atol=1e-12)


def test_a_sequence_cut_in_two_keeps_its_dropout() -> None:
    """Micro-batches share a seed; tokens count on from one to the next."""
    pack = Pack("two documents", (30, 50))
    inputs = Inputs.random(80)
    alone = ring(pack, inputs, 1, dropout=RingDropout(p=0.3, seed=5))
    second = inputs.of(torch.arange(30, 80))
    dropout = RingDropout(p=0.3, seed=5, first_token=30)
    found = ring(Pack("second", (50,)), second, 2, dropout=dropout)
    torch.testing.assert_close(found[0], alone[0][30:], rtol=1e-11, atol=1e-12)


def test_a_plan_of_other_ranks_is_refused() -> None:
    shares = list(torch.arange(8).view(2, 4))
    plan = RingPlan.build(shares, torch.tensor([0, 8]), 0)
    query, key, value = Inputs.random(4).leaves()
    with pytest.raises(ValueError, match="rank 0 of 2"):
        ring_attention(query, key, value, plan, NoExchange(), scale=1.0)


def test_queries_that_do_not_fit_the_plan_are_refused() -> None:
    plan = RingPlan.build([torch.arange(8)], torch.tensor([0, 8]), 0)
    query, key, value = Inputs.random(7).leaves()
    with pytest.raises(ValueError, match="7 queries, but a plan for 8"):
        ring_attention(query, key, value, plan, NoExchange(), scale=1.0)
