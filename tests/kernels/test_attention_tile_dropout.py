"""Attention dropout: a mask of global positions that no layout and no backend changes."""

import pytest
import torch
from emu3_kernels.attention_tile import (
    Dropout,
    KeyRanges,
    attention_delta,
    attention_tile,
    attention_tile_backward,
)
from emu3_kernels.attention_tile.dropout import _mix
from support.triton_interpreter import DEVICE

TOKENS, HEADS, KV_HEADS, DIM, SCALE = 75, 4, 2, 16, 0.3
SEED = 2**63 + 12345
DOCUMENTS = [(0, 30, 0, 30, 1), (30, 75, 30, 75, 1)]
# Triton and its interpreter know no fp64.
BACKENDS = {"reference": ("cpu", torch.float64), "triton": (DEVICE, torch.float32)}


def draw(backend):
    """q, k, v, dout."""
    device, dtype = BACKENDS[backend]
    generator = torch.Generator().manual_seed(0)
    heads = (HEADS, KV_HEADS, KV_HEADS, HEADS)
    return [
        torch.randn(TOKENS, h, DIM, generator=generator, dtype=torch.float64).to(device, dtype)
        for h in heads
    ]


def dropout(p=0.3, first_head=0, device="cpu", keys=slice(None)):
    index = torch.arange(TOKENS, device=device)
    return Dropout(p, SEED, index, index[keys], first_head)


def ranges(device="cpu"):
    return KeyRanges.of_segments(DOCUMENTS, TOKENS, TOKENS, device)


def by_autograd(q, k, v, dout, keep):
    """out, dq, dk, dv with a dense mask in plain torch."""
    q, k, v = (t.requires_grad_() for t in (q, k, v))
    document = (torch.arange(TOKENS) >= 30).long()
    hidden = (document[:, None] != document) | torch.ones(TOKENS, TOKENS).triu(1).bool()
    k_hd, v_hd = (t.repeat_interleave(HEADS // KV_HEADS, 1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k_hd) * SCALE
    prob = scores.masked_fill(hidden, -torch.inf).softmax(-1) * keep / (1 - 0.3)
    out = torch.einsum("hqk,khd->qhd", prob, v_hd)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), dout)


def test_the_hash_ends_as_murmur3_does():
    assert [_mix(0), _mix(1)] == [0, 0x514E28B7]
    assert _mix(torch.tensor(0xFFFFFFFF)).item() == 0x81F16F39


@pytest.mark.parametrize("backend", BACKENDS)
def test_out_and_gradients_are_autograds(backend):
    q, k, v, dout = draw(backend)
    device, dtype = BACKENDS[backend]
    drop = dropout(device=device)

    out, lse = attention_tile(q, k, v, ranges(device), scale=SCALE, dropout=drop, backend=backend)
    dq, dk, dv = (torch.zeros_like(t) for t in (q, k, v))
    attention_tile_backward(
        *(dout, q, k, v, attention_delta(dout, out), lse, ranges(device)),
        scale=SCALE,
        dq_thd=dq,
        dk_thd=dk,
        dv_thd=dv,
        dropout=drop,
        backend=backend,
    )

    keep = dropout().keep(HEADS, slice(None), slice(None))
    expected = by_autograd(*draw("reference"), keep)
    for result, wanted in zip((out, dq, dk, dv), expected, strict=True):
        torch.testing.assert_close(result.cpu(), wanted.to(dtype), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_layout_changes_what_is_dropped(backend):
    """Keys in two tiles, each with half of the heads, as context and tensor parallel ranks do."""
    q, k, v, _ = draw(backend)
    device, _ = BACKENDS[backend]
    whole, _ = attention_tile(
        q, k, v, ranges(device), scale=SCALE, dropout=dropout(device=device), backend=backend
    )

    first = [(0, 30, 0, 30, 1), (30, 41, 30, 41, 1), (41, 75, 30, 41, 0)]
    first = KeyRanges.of_segments(first, 75, 41, device)
    second = KeyRanges.of_segments([(41, 75, 0, 34, 1)], 75, 34, device)
    for head in (0, 2):
        running = None
        for tile, keys in ((first, slice(0, 41)), (second, slice(41, 75))):
            running = attention_tile(
                q[:, head : head + 2],
                k[keys, head // 2 : head // 2 + 1],
                v[keys, head // 2 : head // 2 + 1],
                tile,
                scale=SCALE,
                running=running,
                dropout=dropout(first_head=head, device=device, keys=keys),
                backend=backend,
            )
        torch.testing.assert_close(running[0], whole[:, head : head + 2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_the_rate_holds_for_every_head_query_and_key(p):
    index = torch.arange(400)
    keep = Dropout(p, SEED, index, index).keep(4, slice(None), slice(None)).double()

    def far(dims):  # in standard deviations
        kept = keep.mean(dims)
        return (kept - (1 - p)).abs().max() / (p * (1 - p) * kept.numel() / keep.numel()) ** 0.5

    assert far((0, 1, 2)) < 3
    assert max(far((1, 2)), far((0, 2)), far((0, 1))) < 5


def test_neighbours_and_seeds_are_independent():
    index = torch.arange(400)
    keep = Dropout(0.5, SEED, index, index).keep(2, slice(None), slice(None)).double() - 0.5
    other = Dropout(0.5, SEED + 1, index, index).keep(2, slice(None), slice(None)).double() - 0.5
    pairs = [
        keep[0] * keep[1],
        keep[:, 1:] * keep[:, :-1],
        keep[:, :, 1:] * keep[:, :, :-1],
        keep[:, 1:, 1:] * keep[:, :-1, :-1],
        keep * other,
        # Three keys in a row, a rectangle of two queries and two keys, and of two heads.
        2 * keep[:, :, 2:] * keep[:, :, 1:-1] * keep[:, :, :-2],
        4 * keep[:, 1:, 7:] * keep[:, :-1, 7:] * keep[:, 1:, :-7] * keep[:, :-1, :-7],
        4 * keep[0, :, 1:] * keep[0, :, :-1] * keep[1, :, 1:] * keep[1, :, :-1],
    ]

    # A product of two independent signs of size 1/2 has standard deviation 1/4.
    assert max(pair.mean().abs() * 4 * pair.numel() ** 0.5 for pair in pairs) < 4


def test_rows_of_any_two_far_keys_are_independent():
    """As multiply-add hashing promises of random rows, however far keys lie apart."""
    query, key = torch.arange(4000), torch.tensor([0, 1, 2, 2**16, 2**17, 131_071])
    keep = Dropout(0.1, SEED, query, key).keep(8, slice(None), slice(None)).double() - 0.9

    correlation = keep.flatten(0, 1).T.corrcoef() - torch.eye(len(key))

    assert correlation.abs().max() * keep[:, :, 0].numel() ** 0.5 < 4


def test_auto_finds_a_backend_that_can_drop():
    q, k, v, _ = draw("reference")
    settings = {"scale": SCALE, "dropout": dropout()}

    out, _ = attention_tile(q, k, v, ranges(), **settings)

    expected, _ = attention_tile(q, k, v, ranges(), **settings, backend="reference")
    assert torch.equal(out, expected)
    with pytest.raises(ValueError, match="sdpa: cannot drop by global positions"):
        attention_tile(q, k, v, ranges(), **settings, backend="sdpa")


def test_a_rate_of_one_is_refused():
    with pytest.raises(ValueError, match=r"p is 1.0, must be in \[0, 1\)"):
        dropout(p=1.0)
