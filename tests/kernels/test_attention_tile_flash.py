"""How the mask is dealt to torch's packed flash attention, with a stand-in for its GPU kernels."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from emu3_kernels.attention_tile import KeyRanges, attention_delta, flash, reference

QUERIES, KEYS = 70, 80
LAYOUTS = {
    "documents": ([(0, 1, 0, 1, 1), (1, 30, 1, 30, 1), (30, 70, 30, 70, 1)], 1),
    "gaps": ([(2, 20, 5, 23, 1), (25, 30, 23, 26, 1), (40, 70, 30, 80, 1)], 1),
    "blocks dealt out": ([(0, 32, 0, 32, 1), (32, 64, 0, 64, 1)], 2),
    "of both kinds": ([(0, 32, 0, 16, 0), (32, 64, 16, 48, 1)], 2),
    "nothing": ([], 0),
}


def sequences(q_borders, k_borders, causal):
    """The documented meaning of a packed call: causal is aligned at the ends."""
    spans = zip(pairwise(q_borders.tolist()), pairwise(k_borders.tolist()), strict=True)
    segments = [(*q, *k, causal) for q, k in spans]
    return KeyRanges.of_segments(segments, int(q_borders[-1]), int(k_borders[-1]))


def packed_forward(
    q, k, v, q_borders, k_borders, q_longest, k_longest, dropout, causal, debug, *, scale
):
    assert (q_longest, k_longest) == (q_borders.diff().max(), k_borders.diff().max())
    ranges = sequences(q_borders, k_borders, causal)
    out, lse = reference.forward(q, k, v, ranges, scale, None, None)
    return out, lse.masked_fill(lse == -torch.inf, torch.inf), None, None, None


def packed_backward(
    dout,
    q,
    k,
    v,
    out,
    lse,
    q_borders,
    k_borders,
    q_longest,
    k_longest,
    dropout,
    causal,
    *rng,
    scale,
):
    gradients = [torch.zeros_like(t) for t in (q, k, v)]
    ranges = sequences(q_borders, k_borders, causal)
    delta = attention_delta(dout, out)
    reference.backward(dout, q, k, v, delta, lse, ranges, scale, gradients, None)
    return gradients


@pytest.mark.parametrize("layout", LAYOUTS)
def test_calls_together_are_the_mask(layout, monkeypatch):
    stand_in = SimpleNamespace(
        _flash_attention_forward=packed_forward, _flash_attention_backward=packed_backward
    )
    monkeypatch.setattr(flash, "aten", stand_in)
    segments, calls = LAYOUTS[layout]
    ranges = KeyRanges.of_segments(segments, QUERIES, KEYS)
    generator = torch.Generator().manual_seed(0)
    q, k, v, dout = (
        torch.randn(t, h, 8, generator=generator, dtype=torch.float64)
        for t, h in ((QUERIES, 4), (KEYS, 2), (KEYS, 2), (QUERIES, 4))
    )

    results = []
    for backend in (flash, reference):
        out, lse = backend.forward(q, k, v, ranges, 0.3, None, None)
        gradients = [torch.zeros_like(t) for t in (q, k, v)]
        delta = attention_delta(dout, out)
        backend.backward(dout, q, k, v, delta, lse, ranges, 0.3, gradients, None)
        results.append([out, lse, *gradients])

    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)
    assert len([*flash.calls(ranges)]) == calls
