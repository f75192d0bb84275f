"""Backends and ring call csrc's kernels for what they cannot fuse: here on the emulated machine."""

from threading import Lock

import pytest
import torch
from emu3_kernels import cuda, passes
from emu3_kernels.attention_tile import (
    KeyRanges,
    Tile,
    attention_delta,
    attention_tile,
    attention_tile_backward,
    reference,
)
from emu3_kernels.ring_attention import Ring, RingPlan
from support.rings import Inputs, Pack, one_device, scattered_shares
from support.simulated_ranks import simulate

KERNELS = {
    "emu3_merge_attention": "merge",
    "emu3_accumulate": "accumulate",
    "emu3_permute_tokens": "permute",
}


@pytest.fixture
def called(emulator, monkeypatch):
    """The binding calls the emulated machine, checks included; a list of the kernels it called."""
    calls, one_machine = [], Lock()

    def call(name, *arguments):
        with one_machine:  # simulated ranks are threads
            calls.append(KERNELS[name])
            emulator(KERNELS[name], *arguments)

    monkeypatch.setattr(cuda, "_call", call)
    monkeypatch.setattr(passes, "_on_gpu", lambda tensor: True)
    return calls


def attend(tile, dout, backend):
    """out, lse, dq, dk, dv."""
    settings = {"scale": tile.scale, "backend": backend}
    out, lse = attention_tile(*tile.inputs, tile.ranges, **settings)
    dq, dk, dv = (torch.zeros_like(t, dtype=lse.dtype) for t in tile.inputs)
    attention_tile_backward(
        *(dout, *tile.inputs, attention_delta(dout, out), lse, tile.ranges),
        **settings, dq_thd=dq, dk_thd=dk, dv_thd=dv,
    )  # fmt: skip
    return out, lse, dq, dk, dv


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tile_in_parts_merges_and_adds_by_the_kernels(called, dtype, monkeypatch):
    segments = [(1, 5, 0, 4, 0), (5, 30, 0, 29, 1), (32, 50, 30, 50, 1)]
    generator = torch.Generator().manual_seed(0)
    draw = lambda t, h: torch.randn(t, h, 16, generator=generator).to(dtype)
    q, k, v, dout = draw(52, 4), draw(50, 2), draw(50, 2), draw(52, 4)
    tile = Tile(q, k, v, KeyRanges.of_segments(segments, 52, 50), scale=0.25)

    found = attend(tile, dout, "sdpa")

    pieces = len([*tile.ranges.pieces()])
    assert called == ["merge"] * pieces + ["accumulate"] * 3 * pieces
    monkeypatch.undo()
    for ours, torchs in zip(found, attend(tile, dout, "sdpa"), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-6)


def test_a_ring_gathers_what_leaves_by_the_kernels(called):
    pack, ranks = Pack("mixed", (1, 20, 30), tail=5), 2
    inputs = Inputs.random(pack.tokens, torch.float32)
    shares = scattered_shares(pack.tokens, ranks, block=5)

    def one(exchange):
        plan = RingPlan.build(shares, pack.boundaries, exchange.rank)
        mine = inputs.of(shares[exchange.rank])
        query, key, value = mine.leaves()
        with torch.no_grad():
            ring = Ring(plan, exchange, scale=0.25, backend="reference")
            out, lse = ring.forward(query, key, value)
            return [out, *ring.backward(mine.dout, query, key, value, out, lse)]

    parts = zip(*simulate(ranks, one), strict=True)

    assert called.count("permute") == 2 * 2 * ranks  # keys and values, forward and backward
    order = torch.cat(shares).argsort()
    for found, right in zip(parts, one_device(pack, inputs), strict=True):
        torch.testing.assert_close(torch.cat(found)[order].double(), right, rtol=1e-5, atol=1e-5)


def test_what_the_kernels_do_not_take_goes_through_torch(called):
    out, lse = torch.zeros(3, 2, 6), torch.zeros(2, 3)  # six dimensions are no multiple of four
    passes.merge(out, lse, torch.ones(3, 2, 6), lse.clone())
    assert torch.equal(out, torch.full_like(out, 0.5))

    total = torch.zeros(8)
    passes.accumulate(total, torch.ones(8).half())
    passes.accumulate(total[1:], torch.ones(7))  # not at 16 bytes
    passes.accumulate(total.double(), torch.ones(8))
    assert total.tolist() == [1.0] + [2.0] * 7

    source = torch.arange(12.0).view(3, 4).T
    passes.gather(source, torch.tensor([2, 0]), destination := torch.empty(2, 3))
    assert torch.equal(destination, source[[2, 0]])
    assert called == []


def test_a_cpus_tensors_stay_with_torch():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(5, 2, 8, generator=generator) for _ in range(2))
    tile = Tile(q, k, k, KeyRanges.of_segments([(0, 5, 0, 5, 1)], 5, 5), scale=0.3)
    assert not passes._on_gpu(q)
    assert torch.equal(reference.forward(tile, None)[0][0], k[0])
