"""One rank's queries against one rank's keys, against torch's attention with a dense mask."""

from itertools import pairwise

import pytest
import torch
from emu3_kernels.attention_tile import (
    KeyRanges,
    attention_delta,
    attention_tile,
    attention_tile_alone,
    triton_delta,
)
from emu3_kernels.attention_tile.delta import stand_in_out
from emu3_kernels.passes import merge
from support.attention_case import (
    DTYPES,
    LAYOUTS,
    SCALE,
    Case,
    assert_same,
    dense,
    documents,
)
from support.triton_interpreter import DEVICE

every_backend = pytest.mark.parametrize("backend", DTYPES)


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


@pytest.mark.parametrize("layout", ["one document", "queries that see nothing", "nothing at all"])
@pytest.mark.parametrize(
    ("backend", "dtype"), [("sdpa", torch.bfloat16), ("triton", torch.float16)]
)
def test_a_tile_alone_gives_the_same_in_the_inputs_type(backend, dtype, layout):
    case = Case.draw(layout, backend, dtype=dtype)
    out, lse = case.attend(backend)
    gradients = case.gradients(backend, out, lse)

    alone, lse_alone = attention_tile_alone(
        case.q, case.k, case.v, case.ranges, scale=SCALE, backend=backend
    )
    gradients_alone = case.gradients_alone(backend, out, lse)

    assert torch.equal(alone, out.to(dtype))
    assert torch.equal(lse_alone, lse)
    for ours, wide in zip(gradients_alone, gradients, strict=True):
        assert torch.equal(ours, wide.to(dtype))


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


@pytest.mark.parametrize("dim", [16, 24])
def test_the_fused_delta_is_torchs(dim):
    draw = torch.Generator().manual_seed(0)
    dout, out = (torch.randn(70, 3, 2 * dim, generator=draw).to(DEVICE) for _ in range(2))
    dout, out = dout[..., :dim], out[..., dim:].half()  # rows apart in memory

    found = triton_delta.delta(dout, out)

    torch.testing.assert_close(found, (dout.double() * out).sum(-1).T.float())


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
