"""One rank's queries against one rank's keys, against torch's attention with a dense mask."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from emu3_kernels.attention_tile import (
    KeyRanges,
    attention_delta,
    attention_tile,
    attention_tile_backward,
)
from emu3_kernels.attention_tile.delta import stand_in_out
from emu3_kernels.passes import merge
from support.triton_interpreter import DEVICE
from torch.nn.functional import scaled_dot_product_attention

SCALE = 0.3
# The interpreter knows no fp64.
DTYPES = {"reference": torch.float64, "sdpa": torch.float64, "triton": torch.float32}
TOLERANCE = {
    torch.float64: {"rtol": 1e-11, "atol": 1e-11},
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
}
every_backend = pytest.mark.parametrize("backend", DTYPES)


def documents(*borders):
    return [(start, end, start, end, 1) for start, end in pairwise(borders)]


# Segments, queries, keys. Triton's blocks are of 64 queries and 32 keys, and the reverse.
LAYOUTS = {
    "one document": (documents(0, 70), 70, 70),
    "one token": (documents(0, 1), 1, 1),
    "borders on and beside block edges": (documents(0, 31, 32, 64, 65, 129, 130), 130, 130),
    "documents of one token": (documents(*range(41)), 40, 40),
    "another rank's keys": ([(0, 50, 0, 33, 0), (50, 90, 33, 40, 0)], 90, 40),
    "blocks dealt out": (
        [(0, 64, 0, 64, 1), (64, 128, 0, 128, 1), (128, 150, 90, 150, 1)],
        150,
        150,
    ),
    "more queries than keys": ([(0, 90, 0, 20, 1)], 90, 20),
    "queries that see nothing": ([(3, 20, 0, 17, 1), (70, 75, 40, 80, 0)], 140, 90),
    "nothing at all": ([], 5, 3),
}


@dataclass(frozen=True)
class Case:
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    dout: torch.Tensor
    segments: list
    ranges: KeyRanges

    @classmethod
    def draw(cls, layout, backend="reference", heads=2, kv_heads=1, dim=16, dtype=None):
        segments, queries, keys = LAYOUTS[layout] if isinstance(layout, str) else layout
        device = DEVICE if backend == "triton" else "cpu"
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(
            device, dtype or DTYPES[backend]
        )
        return cls(
            q=draw(queries, heads, dim),
            k=draw(keys, kv_heads, dim),
            v=draw(keys, kv_heads, dim),
            dout=draw(queries, heads, dim),
            segments=segments,
            ranges=KeyRanges.of_segments(segments, queries, keys, device),
        )

    def attend(self, backend, **settings):
        """out and lse."""
        return attention_tile(
            self.q, self.k, self.v, self.ranges, scale=SCALE, backend=backend, **settings
        )

    def gradients(self, backend, out, lse, **settings):
        """dq, dk, dv."""
        gradients = [torch.zeros_like(t, dtype=lse.dtype) for t in (self.q, self.k, self.v)]
        self.add_gradients(backend, out, lse, gradients, **settings)
        return gradients

    def add_gradients(self, backend, out, lse, gradients, **settings):
        dq, dk, dv = gradients
        attention_tile_backward(
            *(self.dout, self.q, self.k, self.v, attention_delta(self.dout, out), lse),
            self.ranges,
            scale=SCALE,
            dq_thd=dq,
            dk_thd=dk,
            dv_thd=dv,
            backend=backend,
            **settings,
        )

    def __call__(self, backend, **settings):
        out, lse = self.attend(backend, **settings)
        return out, lse, *self.gradients(backend, out, lse, **settings)

    def expected(self, dtype=torch.float64):
        """out, lse, dq, dk, dv by torch, with a dense mask made token by token."""
        q, k, v = (t.cpu().to(dtype).requires_grad_() for t in (self.q, self.k, self.v))
        mask = dense(self.segments, len(q), len(k))
        by_head = lambda t: t.transpose(0, 1)[None]
        out = scaled_dot_product_attention(
            *map(by_head, (q, k, v)), attn_mask=mask, scale=SCALE, enable_gqa=True
        )[0].transpose(0, 1)
        out = torch.where(mask.any(1)[:, None, None], out, 0.0)
        k_hkd = by_head(k)[0].repeat_interleave(q.shape[1] // k.shape[1], 0)
        scores = (by_head(q)[0] @ k_hkd.mT * SCALE).masked_fill(~mask, -torch.inf)
        gradients = torch.autograd.grad(out, (q, k, v), self.dout.cpu().to(dtype))
        return [t.detach() for t in (out, scores.logsumexp(-1), *gradients)]


def dense(segments, queries, keys):
    """Who sees whom, bool [queries, keys]."""
    mask = torch.zeros(queries, keys, dtype=torch.bool)
    for q_start, q_end, k_start, k_end, causal in segments:
        for query in range(q_start, q_end):
            last = k_end - (q_end - 1 - query) if causal else k_end
            mask[query, k_start : max(last, k_start)] = True
    return mask


def assert_same(results, expected):
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(
            result.cpu(), wanted.to(result.dtype).cpu(), **TOLERANCE[result.dtype]
        )


@every_backend
@pytest.mark.parametrize("layout", LAYOUTS)
def test_out_and_gradients_are_torchs(backend, layout):
    case = Case.draw(layout, backend)

    assert_same(case(backend), case.expected())


@every_backend
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(2, 2, 16), (4, 2, 32), (4, 1, 16)])
def test_heads_share_keys_in_groups(backend, heads, kv_heads, dim):
    case = Case.draw((documents(0, 20, 75), 75, 75), backend, heads, kv_heads, dim)

    assert_same(case(backend), case.expected())


def cut(case, start, end):
    """The case with keys [start, end) alone; every query a segment of its own."""
    first, last = (t.clamp(start, end) - start for t in (case.ranges.first_q, case.ranges.last_q))
    rows = [
        (query, query + 1, a, max(a, b), 0)
        for query, (a, b) in enumerate(zip(first.tolist(), last.tolist(), strict=True))
    ]
    ranges = KeyRanges.of_segments(rows, len(rows), end - start, case.q.device)
    return Case(case.q, case.k[start:end], case.v[start:end], case.dout, rows, ranges)


@every_backend
def test_tiles_of_any_keys_add_up(backend):
    case = Case.draw("blocks dealt out", backend)
    whole = case(backend)
    borders = [0, 1, 37, 64, 64, 101, len(case.k)]
    tiles = [cut(case, start, end) for start, end in pairwise(borders)]

    running = None
    for tile in tiles:
        running = tile.attend(backend, running=running)
    dq = torch.zeros_like(whole[2])
    dk, dv = torch.zeros_like(whole[3]), torch.zeros_like(whole[4])
    for tile, (start, end) in zip(tiles, pairwise(borders), strict=True):
        tile.add_gradients(backend, *running, (dq, dk[start:end], dv[start:end]))

    assert_same([*running, dq, dk, dv], whole)


@every_backend
def test_what_earlier_tiles_gave_stays_where_nothing_new_is_visible(backend):
    case = Case.draw("queries that see nothing", backend)
    out, lse = torch.randn_like(case.q), torch.randn(2, 140, dtype=case.q.dtype).to(case.q.device)
    before = out.clone(), lse.clone()

    assert case.attend(backend, running=(out, lse)) == (out, lse)

    blind = ~dense(case.segments, 140, 90).any(1)
    assert torch.equal(out[blind], before[0][blind])
    assert torch.equal(lse[:, blind], before[1][:, blind])
    assert not torch.equal(out, before[0])


@every_backend
def test_repeats_are_bit_equal(backend):
    case = Case.draw("borders on and beside block edges", backend)

    assert all(map(torch.equal, case(backend), case(backend)))


@pytest.mark.parametrize(
    ("backend", "dtype"), [("sdpa", torch.bfloat16), ("triton", torch.float16)]
)
def test_rounding_costs_no_more_than_plain_torchs(backend, dtype):
    case = Case.draw("one document", backend, dim=32, dtype=dtype)
    exact, plain = case.expected(), case.expected(dtype)

    for result, torchs, wanted in zip(case(backend), plain, exact, strict=True):
        error, torchs_error = ((t.cpu().double() - wanted).norm() for t in (result, torchs))
        assert error <= 1.2 * torchs_error


@pytest.mark.parametrize("size", [1.0, 1e-25])
def test_the_stand_in_for_out_has_the_same_delta(size):
    out, dout = torch.randn(2, 5, 3, 8, generator=torch.Generator().manual_seed(0)).unbind()
    dout[2] = 0.0
    delta = attention_delta(dout, out)

    stand_in = stand_in_out(dout * size, delta * size)

    torch.testing.assert_close(attention_delta(dout, stand_in), delta)
    assert (stand_in.norm(dim=-1) <= out.norm(dim=-1) * 1.001).all()


def test_merging_nothing_with_nothing_leaves_nothing():
    out, lse = torch.zeros(1, 1, 2), torch.full((1, 1), -torch.inf)

    merge(out, lse, out.clone(), lse.clone())

    assert out.tolist() == [[[0.0, 0.0]]]
    assert lse.item() == -torch.inf


def test_a_call_that_cannot_be_served_says_why():
    case = Case.draw("one document")

    with pytest.raises(ValueError, match="'fast' is none of auto, reference"):
        case.attend("fast")
    with pytest.raises(ValueError, match=r"triton: does not take torch\.float64"):
        case.attend("triton")
    with pytest.raises(ValueError, match="3 heads cannot share 2 key heads"):
        Case.draw("one document", heads=3, kv_heads=2).attend("auto")
    with pytest.raises(ValueError, match="ranges are of 70 queries x 70 keys, not 69 x 70"):
        attention_tile(case.q[:69], case.k, case.v, case.ranges, scale=SCALE)
