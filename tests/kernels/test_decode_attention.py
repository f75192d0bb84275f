"""Attention of a decode step, against torch's attention query by query in fp64."""

from dataclasses import replace

import pytest
import torch
from emu3_kernels.decode_attention import Positions, sdpa
from support.decode_steps import DecodeCase, error
from support.triton_interpreter import DEVICE
from torch.nn.functional import scaled_dot_product_attention

# The interpreter knows no fp64.
DTYPES = {"reference": torch.float64, "torch": torch.float64, "triton": torch.float32}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}
every_backend = pytest.mark.parametrize("backend", DTYPES)
LAST = {
    "one row": [130],
    "the first keys alone": [4, 4],
    "guidance": [140, 133],
    "any lengths": [5, 299, 64, 63, 128, 5],
}


def case_of(backend, *arguments, **settings):
    """As a backend takes it."""
    case = DecodeCase.draw(*arguments, **settings)
    return case.to(DTYPES[backend], DEVICE if backend == "triton" else "cpu")


@pytest.mark.parametrize(("width", "group", "dim"), [(1, 4, 64), (2, 1, 128), (5, 4, 64)])
@pytest.mark.parametrize("last", LAST)
@every_backend
def test_each_query_sees_its_rows_keys_up_to_itself(backend, last, width, group, dim):
    case = case_of(backend, LAST[last], width, group, dim)

    out = case.attend(backend)

    assert error(out, case.exact()) < TOLERANCE[DTYPES[backend]]


@every_backend
def test_the_first_token_sees_itself(backend):
    case = case_of(backend, [0, 0])

    wanted = case.value[:, :, :1].transpose(1, 2).repeat_interleave(2, 2)
    torch.testing.assert_close(case.attend(backend), wanted)


@pytest.mark.parametrize("width", [1, 3])
def test_a_cpu_takes_rows_together_or_alone(width, monkeypatch):
    case = DecodeCase.draw([5, 5, 299, 64, 128], width)
    calls = []
    attention = scaled_dot_product_attention
    count = lambda query, *rest, **options: (
        calls.append(len(query)) or attention(query, *rest, **options)
    )
    monkeypatch.setattr(sdpa, "scaled_dot_product_attention", count)

    for cost, wanted in ((0, [2, 1, 1, 1]), (10**6, [5])):
        monkeypatch.setattr(sdpa, "CALL", cost)
        monkeypatch.setattr(sdpa, "MASKED_CALL", cost)
        calls.clear()
        assert error(case.attend("torch"), case.exact()) < 1e-12
        assert calls == wanted


@pytest.mark.parametrize("width", [1, 2])
@every_backend
def test_layers_may_share_positions(backend, width):
    case = case_of(backend, [20, 150], width)
    shared = replace(case, positions=Positions(case.positions))

    assert torch.equal(shared.attend(backend), case.attend(backend))
    other = replace(shared, key=case.value, value=case.key)
    wanted = replace(case, key=case.value, value=case.key).attend(backend)
    assert torch.equal(other.attend(backend), wanted)


@every_backend
def test_keys_past_the_last_position_have_no_effect(backend):
    case = case_of(backend, [20, 150])
    out = case.attend(backend)

    for row, position in enumerate([20, 150]):
        case.key[row, :, position + 1 :] = 1e4
        case.value[row, :, position + 1 :] = 1e4

    assert torch.equal(case.attend(backend), out)


@every_backend
def test_positions_may_be_bounded(backend):
    case = case_of(backend, [20, 150])

    torch.testing.assert_close(case.attend(backend, longest=151), case.attend(backend))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_costs_no_more_than_plain_torchs(dtype):
    case = DecodeCase.draw([40, 299, 130], width=2, group=4).to(dtype)

    out = case.attend("torch")

    assert out.dtype == dtype
    assert error(out, case.exact()) <= 1.2 * error(case.plain(), case.exact())


def test_on_other_devices_the_host_reads_nothing():
    case = DecodeCase.draw([20, 150], width=2).to(torch.float32, "meta")

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
    case = replace(DecodeCase.draw([20, 150]).to(torch.float32), **change)

    with pytest.raises(ValueError, match=reason):
        case.attend()


def test_unknown_settings_are_refused():
    case = DecodeCase.draw([20])

    with pytest.raises(ValueError, match="no backend 'flash'; choose one of auto"):
        case.attend("flash")
    with pytest.raises(ValueError, match="longest is 301; the capacity is 300"):
        case.attend(longest=301)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (DecodeCase.draw([20]), "does not take torch.float64"),
        (DecodeCase.draw([20], dim=24).to(torch.float32), "head dimension 24 is no power of 2"),
        (DecodeCase.draw([40], width=33, group=4).to(torch.float32), "132 queries share a KV head"),
    ],
)
def test_triton_says_what_it_cannot_take(case, reason):
    with pytest.raises(ValueError, match=f"backend triton: {reason}"):
        case.to(case.query.dtype, DEVICE).attend("triton")
