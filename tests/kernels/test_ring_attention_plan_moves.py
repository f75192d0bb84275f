"""Plans made in a data worker: pickled, pinned and moved they stay what they were."""

import pickle

import pytest
import torch
from emu3_kernels.exchange import Exchange
from emu3_kernels.ring_attention import RingDropout, RingPlan, ring_attention
from support.rings import Inputs, Pack, assert_equal_plans, scattered_shares, tensors_of
from support.simulated_ranks import simulate
from torch.utils.data import DataLoader, Dataset

PACK = Pack("mixed", (1, 37, 90, 1, 60), tail=7)
RANKS = 3
SHARES = scattered_shares(PACK.tokens, RANKS, block=5)


def build(rank: int, device: str = "cpu") -> RingPlan:
    return RingPlan.build(SHARES, PACK.boundaries, rank, device)


class Plans(Dataset):
    """A data set whose samples are the plans of a rank."""

    def __len__(self) -> int:
        return RANKS

    def __getitem__(self, rank: int) -> RingPlan:
        return build(rank)


def test_plans_come_out_of_a_data_worker() -> None:
    for rank, plan in enumerate(DataLoader(Plans(), batch_size=None, num_workers=1)):
        assert_equal_plans(plan, build(rank))


def test_a_pickled_and_moved_plan_gives_the_same_bits() -> None:
    inputs = Inputs.random(PACK.tokens)

    def out(exchange: Exchange, plan: RingPlan) -> torch.Tensor:
        query, key, value = inputs.of(SHARES[exchange.rank]).leaves()
        dropout = RingDropout(p=0.3, seed=5)
        return ring_attention(query, key, value, plan, exchange, scale=0.25, dropout=dropout)

    moved = lambda plan: pickle.loads(pickle.dumps(plan)).to("cpu")
    found = simulate(RANKS, lambda exchange: out(exchange, moved(build(exchange.rank))))
    expected = simulate(RANKS, lambda exchange: out(exchange, build(exchange.rank)))

    assert all(map(torch.equal, found, expected))


def test_every_tensor_moves_to_the_device() -> None:
    plan = build(1).to("meta")

    assert {tensor.device.type for tensor in tensors_of(plan)} == {"meta"}
    assert {tensor.device.type for tensor in tensors_of(build(1, "meta"))} == {"meta"}
    assert plan.steps[0].keys_k is plan.queries_t  # one copy of what the plan holds twice


def test_every_tensor_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)  # it needs a GPU

    plan = build(1).pin_memory()

    assert_equal_plans(plan, build(1))
    assert {id(tensor) for tensor in tensors_of(plan)} == {id(tensor) for tensor in pinned}


def test_what_was_computed_from_the_ranges_does_not_move_with_them() -> None:
    ranges = build(1).steps[0].ranges
    assert ranges is not None
    expected = [*ranges.by_key, ranges.heaviest_first(4)]

    moved = ranges.to("meta")

    found = [*moved.by_key, moved.heaviest_first(4)]
    assert {tensor.device.type for tensor in found} == {"meta"}
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in expected]
