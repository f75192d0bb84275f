"""The ring over Triton tiles on a GPU, its ranks simulated by threads."""

import pytest
import torch
from emu3_kernels.exchange import Exchange
from emu3_kernels.ring_attention import Ring, RingPlan
from support.rings import Inputs, Pack, assert_equal_plans, one_device, scattered_shares, tensors_of
from support.simulated_ranks import simulate

pytestmark = pytest.mark.gpu

PACK = Pack("mixed", (1, 370, 900, 1, 600, 30, 1010), tail=70)


def ring(inputs: Inputs, ranks: int) -> list[torch.Tensor]:
    """Out and gradients of query, key and value over simulated ranks, on the CPU."""
    shares = scattered_shares(PACK.tokens, ranks, block=128)

    def one(exchange: Exchange) -> list[torch.Tensor]:
        mine = inputs.of(shares[exchange.rank])
        plan = RingPlan.build(shares, PACK.boundaries, exchange.rank, "cuda")
        part = Ring(plan, exchange, scale=0.125)
        query, key, value, dout = (t.cuda() for t in vars(mine).values())
        out, lse = part.forward(query, key, value)
        out = out.to(query.dtype)
        return [out, *part.backward(dout, query, key, value, out, lse)]

    order = torch.cat(shares).argsort()
    parts = zip(*simulate(ranks, one), strict=True)
    return [torch.cat(tensors).cpu()[order] for tensors in parts]


def relative_error(found: torch.Tensor, right: torch.Tensor) -> float:
    return ((found.double() - right).norm() / right.norm()).item()


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_near_fp64_on_any_number_of_ranks(ranks: int) -> None:
    inputs = Inputs.random(PACK.tokens, torch.bfloat16, dim=64)
    right = one_device(PACK, inputs, scale=0.125)
    for found, exact in zip(ring(inputs, ranks), right, strict=True):
        assert relative_error(found, exact) < 5e-3  # a rounding to bf16 is 1.7e-3


def test_the_same_bits_at_every_repeat_on_a_gpu() -> None:
    inputs = Inputs.random(PACK.tokens, torch.bfloat16, dim=64)
    first, second = ring(inputs, 4), ring(inputs, 4)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_plan_pinned_and_moved_is_the_one_built_on_the_gpu() -> None:
    shares = scattered_shares(PACK.tokens, 3, block=128)
    pinned = RingPlan.build(shares, PACK.boundaries, 1).pin_memory()
    built = RingPlan.build(shares, PACK.boundaries, 1, "cuda")
    assert all(tensor.is_pinned() for tensor in tensors_of(pinned) if tensor.numel())
    moved = pinned.to("cuda")
    assert {tensor.device.type for tensor in tensors_of(moved) + tensors_of(built)} == {"cuda"}
    assert_equal_plans(moved, built)
    assert_equal_plans(moved.to("cpu"), built)
