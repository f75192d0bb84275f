"""Attention of a decode step, against torch's attention row by row in fp64."""

from dataclasses import dataclass, replace

import pytest
import torch
from emu3_kernels.decode_attention import decode_attention, sdpa
from torch.nn.functional import scaled_dot_product_attention

CAPACITY = 300
# The interpreter knows no fp64.
DTYPES = {"reference": torch.float64, "torch": torch.float64}
every_backend = pytest.mark.parametrize("backend", DTYPES)
LAST = {
    "one row": [130],
    "the first key alone": [0, 0],
    "equal rows": [77, 77, 77],
    "guidance": [140, 133],
    "any lengths": [5, 299, 64, 63, 128, 5],
}


@dataclass(frozen=True)
class Case:
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    positions: torch.Tensor
    scale: float = 0.2

    @classmethod
    def draw(cls, last, width=1, group=2, dim=64, dtype=torch.float64, device="cpu"):
        """Rows of a larger pool, each with `width` neighbouring queries up to its last position."""
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(
            device, dtype
        )
        rows, kv_heads = len(last), 2
        pool = draw(2, rows + 3, kv_heads, CAPACITY, dim)
        positions = torch.tensor(last)[:, None] + torch.arange(1 - width, 1)
        query = draw(rows, width, kv_heads * group, dim)
        return cls(query, *pool[:, 2 : rows + 2], positions.to(device))

    def to(self, dtype, device="cpu"):
        tensors = (t.to(device, dtype) for t in (self.query, self.key, self.value))
        return Case(*tensors, self.positions.to(device))

    def attend(self, backend="auto", **settings):
        inputs = (self.query, self.key, self.value, self.positions, self.scale)
        return decode_attention(*inputs, backend=backend, **settings)

    def exact(self):
        """torch's attention in fp64, one query at a time."""
        case, outs = self.to(torch.float64), []
        for row, positions in enumerate(case.positions.tolist()):
            for place, position in enumerate(positions):
                query_1h1d = case.query[row, place][None, :, None]
                key, value = (t[row : row + 1, :, : position + 1] for t in (case.key, case.value))
                outs.append(
                    scaled_dot_product_attention(
                        query_1h1d, key, value, scale=case.scale, enable_gqa=True
                    )
                )
        return torch.cat(outs).view_as(case.query)


def error(found, exact):
    return ((found.double().cpu() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize(("group", "dim"), [(1, 128), (4, 64)])
@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("last", LAST)
@every_backend
def test_each_query_sees_its_rows_keys_up_to_itself(backend, last, width, group, dim):
    last = [max(position, width - 1) for position in LAST[last]]
    case = Case.draw(last, width, group, dim)

    out = case.to(DTYPES[backend]).attend(backend)

    assert error(out, case.exact()) < 1e-12


@pytest.mark.parametrize("width", [1, 3])
def test_a_cpu_takes_rows_together_or_alone(width, monkeypatch):
    case = Case.draw(LAST["any lengths"][1:], width)
    calls = []
    attention = scaled_dot_product_attention
    count = lambda query, *rest, **options: (
        calls.append(len(query)) or attention(query, *rest, **options)
    )
    monkeypatch.setattr(sdpa, "scaled_dot_product_attention", count)

    for costs, wanted in (((0, 0), [1] * 5), ((10**6, 10**6), [5])):
        monkeypatch.setattr(sdpa, "CALL", costs[0])
        monkeypatch.setattr(sdpa, "MASKED_CALL", costs[1])
        calls.clear()
        assert error(case.attend("torch"), case.exact()) < 1e-12
        assert calls == wanted


@every_backend
def test_keys_past_the_last_position_have_no_effect(backend):
    case = Case.draw([20, 150])
    case = case.to(DTYPES[backend])
    out = case.attend(backend)

    for row, position in enumerate([20, 150]):
        case.key[row, :, position + 1 :] = 1e4
        case.value[row, :, position + 1 :] = 1e4

    assert torch.equal(case.attend(backend), out)


@every_backend
def test_positions_may_be_bounded(backend):
    case = Case.draw([20, 150]).to(DTYPES[backend])

    torch.testing.assert_close(case.attend(backend, longest=151), case.attend(backend))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_costs_no_more_than_plain_torchs(dtype):
    case = Case.draw([40, 299, 130], width=2, group=4).to(dtype)

    out = case.attend("torch")

    assert out.dtype == dtype
    plain = [
        (query[None] @ key[:, : last + 1].mT * case.scale).softmax(-1) @ value[:, : last + 1]
        for query_wkgd, key, value, positions in zip(
            case.query.unflatten(2, (2, 4)), case.key, case.value, case.positions, strict=True
        )
        for query, last in zip(query_wkgd, positions.tolist(), strict=True)
    ]
    exact = case.exact()
    assert error(out, exact) <= 1.2 * error(torch.cat(plain).view_as(exact), exact)


def test_on_other_devices_the_host_reads_nothing():
    case = Case.draw([20, 150], width=2).to(torch.float32, "meta")

    assert case.attend("torch").shape == case.query.shape


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"key": torch.zeros(2, 2, 9, 64)}, "do not fit"),
        ({"query": torch.zeros(2, 1, 3, 64)}, "3 heads cannot share 2 KV heads"),
        ({"query": torch.zeros(2, 1, 4, 64).bfloat16()}, "queries, keys, values are"),
        ({"positions": torch.zeros(2, 1)}, "positions are torch.float32"),
        ({"positions": torch.zeros(2, 3, dtype=torch.int64)}, "needed: integers"),
    ],
)
def test_what_does_not_fit_is_refused(change, reason):
    case = replace(Case.draw([20, 150], dtype=torch.float32), **change)

    with pytest.raises(ValueError, match=reason):
        case.attend()


def test_unknown_settings_are_refused():
    case = Case.draw([20])

    with pytest.raises(ValueError, match="no backend 'flash'; choose one of auto"):
        case.attend("flash")
    with pytest.raises(ValueError, match="longest is 301; the capacity is 300"):
        case.attend(longest=301)
