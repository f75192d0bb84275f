"""Attention tiles on a GPU, in bf16 at Emu3's heads, against fp64 and beside plain torch."""

from importlib.util import find_spec

import pytest
import torch
from emu3_kernels import cuda, passes
from emu3_kernels.attention_tile import (
    Dropout,
    KeyRanges,
    attention_delta,
    attention_tile,
    attention_tile_backward,
)

pytestmark = pytest.mark.gpu

NO_PACKAGE = pytest.mark.skipif(not find_spec("flash_attn"), reason="no flash-attn")
BACKENDS = ["triton", "flash", pytest.param("flash_attn", marks=NO_PACKAGE), "cudnn", "flex"]

HEADS, KV_HEADS, DIM = 32, 8, 128
# Segments, queries, keys.
LAYOUTS = {
    "one document": ([(0, 700, 0, 700, 1)], 700, 700),
    "documents": ([(0, 1, 0, 1, 1), (1, 300, 1, 300, 1), (300, 700, 300, 700, 1)], 700, 700),
    "another rank's keys": ([(0, 300, 0, 450, 0), (400, 500, 500, 640, 0)], 500, 640),
    "blocks dealt out": ([(0, 256, 0, 256, 1), (256, 512, 0, 512, 1)], 512, 512),
}


def draw(layout, heads=HEADS, kv_heads=KV_HEADS):
    """q, k, v, dout in bf16, and the ranges."""
    segments, queries, keys = LAYOUTS[layout]
    generator = torch.Generator("cuda").manual_seed(0)
    tensors = [
        torch.randn(t, h, DIM, generator=generator, device="cuda").bfloat16()
        for t, h in ((queries, heads), (keys, kv_heads), (keys, kv_heads), (queries, heads))
    ]
    return tensors, KeyRanges.of_segments(segments, queries, keys, "cuda")


def attend(tensors, ranges, backend, dropout=None, running=None):
    """out, lse, dq, dk, dv."""
    q, k, v, dout = tensors
    settings = {"scale": DIM**-0.5, "dropout": dropout, "backend": backend}
    out, lse = attention_tile(q, k, v, ranges, running=running, **settings)
    dq, dk, dv = (torch.zeros_like(t, dtype=lse.dtype) for t in (q, k, v))
    delta = attention_delta(dout, out)
    attention_tile_backward(
        *(dout, q, k, v, delta, lse, ranges), dq_thd=dq, dk_thd=dk, dv_thd=dv, **settings
    )
    return out, lse, dq, dk, dv


def plain(tensors, ranges):
    """The same by torch in bf16, with a dense mask."""
    q, k, v, dout = tensors
    q, k, v = (t.clone().requires_grad_() for t in (q, k, v))
    key = torch.arange(len(k), device="cuda")
    mask = (key >= ranges.first_q[:, None]) & (key < ranges.last_q[:, None])
    k_hkd, v_hkd = (t.transpose(0, 1).repeat_interleave(HEADS // KV_HEADS, 0) for t in (k, v))
    scores = (q.transpose(0, 1) @ k_hkd.mT * DIM**-0.5).masked_fill(~mask, -torch.inf)
    out = (scores.softmax(-1).nan_to_num(0.0) @ v_hkd).transpose(0, 1)
    gradients = torch.autograd.grad(out, (q, k, v), dout)
    return out.detach(), scores.detach().logsumexp(-1), *(g.nan_to_num(0.0) for g in gradients)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_rounding_costs_no_more_than_plain_torchs(backend, layout):
    tensors, ranges = draw(layout)

    results = attend(tensors, ranges, backend)

    exact = attend([t.double() for t in tensors], ranges, "reference")
    for result, torchs, wanted in zip(results, plain(tensors, ranges), exact, strict=True):
        seen = wanted.isfinite()
        assert torch.equal(result.isfinite(), seen)
        error, torchs_error = ((t[seen] - wanted[seen]).norm() for t in (result, torchs))
        assert error <= 1.2 * torchs_error + 1e-6 * wanted[seen].norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_triton_takes_other_types(dtype):
    tensors, ranges = draw("documents")

    results = attend([t.to(dtype) for t in tensors], ranges, "triton")

    exact = attend([t.double() for t in tensors], ranges, "reference")
    tolerance = 1e-3 if dtype == torch.float16 else 1e-5
    for result, wanted in zip(results, exact, strict=True):
        assert (result - wanted).norm() <= tolerance * wanted.norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_running_results_are_merged(backend):
    tensors, ranges = draw("another rank's keys")
    out, lse, *_ = attend(tensors, ranges, backend)

    twice, lse_twice, *_ = attend(tensors, ranges, backend, running=(out.clone(), lse.clone()))

    torch.testing.assert_close(twice, out)
    torch.testing.assert_close(lse_twice, lse + torch.tensor(2.0).log().item())


def test_triton_drops_what_the_reference_drops():
    tensors, ranges = draw("documents")
    index = torch.arange(700, device="cuda")
    dropout = Dropout(0.1, 2**40 + 7, index, index, first_head=32)

    results = attend(tensors, ranges, "triton", dropout)

    exact = attend([t.double() for t in tensors], ranges, "reference", dropout)
    for result, wanted in zip(results, exact, strict=True):
        assert (result - wanted).norm() <= 1e-2 * wanted.norm()


# Heads of a rank of four and of eight tensor parallel ranks, as in stages 1 and 2.
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 2), (4, 1)])
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("layout", ["one document", "another rank's keys"])
def test_the_heads_of_one_rank(layout, p, heads, kv_heads):
    tensors, ranges = draw(layout, heads, kv_heads)
    queries, keys = (torch.arange(len(t), device="cuda") for t in tensors[:2])
    dropout = Dropout(p, 3, queries, keys, first_head=heads) if p else None

    results = attend(tensors, ranges, "triton", dropout)

    exact = attend([t.double() for t in tensors], ranges, "reference", dropout)
    for result, wanted in zip(results, exact, strict=True):
        seen = wanted.isfinite()
        assert (result[seen] - wanted[seen]).norm() <= 1e-2 * wanted[seen].norm()


def test_triton_repeats_bit_by_bit():
    tensors, ranges = draw("blocks dealt out")

    first, second = (attend(tensors, ranges, "triton") for _ in range(2))

    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("backend", ["flash", "cudnn"])
def test_csrcs_passes_and_torchs_give_the_same(backend, monkeypatch):
    assert cuda.available(), "build it first: make csrc"
    tensors, ranges = draw("documents")
    called = []
    merge, add = cuda.merge_attention, cuda.accumulate
    monkeypatch.setattr(cuda, "merge_attention", lambda *a: (called.append("merge"), merge(*a)))
    monkeypatch.setattr(cuda, "accumulate", lambda *a: (called.append("add"), add(*a)))

    by_csrc = attend(tensors, ranges, backend)
    assert set(called) == {"merge", "add"}
    monkeypatch.setattr(passes, "_on_gpu", lambda tensor: False)
    by_torch = attend(tensors, ranges, backend)

    for ours, torchs in zip(by_csrc, by_torch, strict=True):
        # Their backward may add in any order, so bf16 apart.
        torch.testing.assert_close(ours, torchs, rtol=2**-7, atol=2**-7)
