"""The products of the fused head as a GPU takes them: padded extents, 16-bit logits.

Logits of bf16 inputs are fp16 and their gradient is bf16. Triton's interpreter rounds bf16 wrongly,
so the row passes here are the reference's, in fp32, between logits and gradient that torch rounds.
"""

from dataclasses import replace

import pytest
import torch
from emu3_kernels.linear_cross_entropy import products, reference
from support.heads import HeadCase, error
from support.simulated_ranks import RecordingExchange, simulate
from torch.utils._python_dispatch import TorchDispatchMode

TOKENS, HIDDEN, VOCAB = 12, 8, 21
FP64 = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture
def aligned(monkeypatch):
    monkeypatch.setitem(products.ALIGNMENT, "cpu", 8)


class Extents(TorchDispatchMode):
    """Remembers the extents m, k, n of all matrix products."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        if name in ("mm", "addmm"):
            left, right = arguments[name == "addmm" :][:2]
            self.seen.append((*left.shape, right.shape[1]))
        return function(*arguments, **(keywords or {}))


@pytest.mark.usefixtures("aligned")
@pytest.mark.parametrize("rows", [0, 3, 11], ids=["no padding", "too little", "more than enough"])
def test_extents_are_aligned_whatever_padding_the_head_has(rows):
    case = HeadCase.random(16, VOCAB, HIDDEN)
    main_grad = torch.zeros(VOCAB + rows, HIDDEN, dtype=torch.float64)

    with Extents() as extents:
        case.padded(rows)(chunk_size=8, main_grad_vh=main_grad)

    columns = {(8, HIDDEN, 24), (8, 16, HIDDEN), (8, 8, HIDDEN), (16, 8, HIDDEN)}
    assert set(extents.seen) == columns
    torch.testing.assert_close(main_grad[:VOCAB], case.by_torch()[2], **FP64)
    assert main_grad[VOCAB:].abs().sum() == 0


@pytest.mark.usefixtures("aligned")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e3], ids=["NaN", "inf", "would win"])
@pytest.mark.parametrize("vocabulary", [5, 16, VOCAB])
def test_padding_of_the_weight_enters_no_product(value, vocabulary):
    case = HeadCase.random(TOKENS, vocabulary, HIDDEN)

    sums, by_hidden, by_head = case.padded(11, value)(z_loss=0.1, chunk_size=5)

    loss, expected_by_hidden, expected_by_head, _ = case.by_torch(z_loss=0.1)
    torch.testing.assert_close(sums.loss.detach(), loss, **FP64)
    torch.testing.assert_close(by_hidden, expected_by_hidden, **FP64)
    torch.testing.assert_close(by_head[:vocabulary], expected_by_head, **FP64)
    assert by_head[vocabulary:].abs().sum() == 0


@pytest.mark.usefixtures("aligned")
def test_the_last_rank_is_ragged():
    case = HeadCase.random(TOKENS, VOCAB, HIDDEN)
    whole = case.padded(3 * 9 - VOCAB, torch.nan)

    def call(exchange):
        return whole.share(exchange.rank, 3)(z_loss=0.1, exchange=exchange, chunk_size=5)

    _, expected_by_hidden, expected_by_head, _ = case.by_torch(z_loss=0.1)
    results = simulate(3, call)
    for _, by_hidden, _ in results:
        torch.testing.assert_close(by_hidden, expected_by_hidden, **FP64)
    by_head = torch.cat([by_head for *_, by_head in results])
    torch.testing.assert_close(by_head[:VOCAB], expected_by_head, **FP64)


def test_the_sum_over_ranks_overlaps_the_last_product_by_the_weight(monkeypatch):
    events = []
    exchange = RecordingExchange(events)
    by_weight = products.Head.by_weight

    def recorded(self, *arguments):
        events.append("by weight")
        by_weight(self, *arguments)

    monkeypatch.setattr(products.Head, "by_weight", recorded)
    HeadCase.random(TOKENS, VOCAB, HIDDEN)(exchange=exchange, chunk_size=8)

    assert events[-5:] == ["by weight", "end 1", "start sum", "by weight", "end sum"]


@pytest.fixture
def sixteen_bits(monkeypatch):
    """The reference's passes on logits of 16 bits, as the GPU's kernels see them."""

    def statistics(logits, labels):
        return reference.statistics(logits.float(), labels)

    def gradient(logits, labels, weights, statistics, lse, z_loss, out):
        wide = logits.float()
        reference.gradient(wide, labels, weights, None, lse, z_loss, wide)
        out.copy_(wide)

    narrow = replace(reference.ROWS, statistics=statistics, gradient=gradient, at_least_fp32=False)
    monkeypatch.setattr(reference, "ROWS", narrow)


def bf16_case(deviation):
    """Logits of a standard deviation, as a trained head makes them; a benchmark's has 2."""
    hidden = 256
    case = HeadCase.random(32, 20_011, hidden)
    return replace(case, head=case.head * deviation * hidden**-0.5).to(torch.bfloat16)


@pytest.mark.usefixtures("sixteen_bits", "aligned")
@pytest.mark.parametrize("deviation", [2, 4, 6])
def test_gradients_are_close_to_fp64s_whatever_the_logits(deviation):
    case = bf16_case(deviation)

    _, *found = case(backend="reference")

    _, *exact = case.to(torch.float64).by_torch()
    for ours, wanted in zip(found, exact[:2], strict=True):
        assert ours.dtype == torch.bfloat16
        assert error(ours, wanted) <= 2.5e-3


def test_bf16_logits_would_be_too_coarse():
    """What the test before would find if logits were bf16, as plain torch's are."""
    case = bf16_case(6)

    by_hidden = case.by_torch()[1]

    assert error(by_hidden, case.to(torch.float64).by_torch()[1]) > 5e-3


@pytest.mark.usefixtures("sixteen_bits", "aligned")
def test_log_probabilities_are_closer_to_fp64s_than_torchs():
    case = bf16_case(4)

    log_prob, *_, by_hidden, _ = case.log_probabilities(backend="reference")

    exact = case.to(torch.float64).log_probabilities_by_torch()
    assert (log_prob.double() - exact[0]).abs().max() < 2**-6  # half of fp16's last place below 32
    torchs = case.log_probabilities_by_torch()[3]
    assert 1.5 * error(by_hidden, exact[3]) < error(torchs, exact[3])
