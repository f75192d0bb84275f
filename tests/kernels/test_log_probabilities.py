"""Each token's log-probability and its gradients on one rank, against torch's log-softmax."""

from dataclasses import replace

import pytest
import torch
from emu3_kernels.linear_cross_entropy import IGNORE, linear_cross_entropy, token_log_probabilities
from support.heads import HeadCase, Outputs, contrast, error
from torch.nn.functional import linear
from torch.utils.flop_counter import FlopCounterMode

TOKENS, HIDDEN, VOCAB = 12, 6, 21
FP64 = {"rtol": 1e-12, "atol": 1e-12}
BACKENDS = ["reference", "unfused"]


def case_with_ignored_tokens():
    """Every third token is ignored; the labels of every second are the likeliest ids."""
    case = HeadCase.random(TOKENS, VOCAB, HIDDEN)
    labels = torch.where(torch.arange(TOKENS) % 2 == 0, linear(case.hidden, case.head).argmax(1), 0)
    labels[1::3] = IGNORE
    return replace(case, labels=labels)


def assert_torchs(case, **settings):
    found, wanted = case.log_probabilities(**settings), case.log_probabilities_by_torch()
    for ours, torchs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, torchs, **FP64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ignoring", [False, True], ids=["all", "some ignored"])
def test_values_and_gradients_are_torchs(backend, ignoring):
    case = case_with_ignored_tokens() if ignoring else HeadCase.random(TOKENS, VOCAB, HIDDEN)

    assert_torchs(case, backend=backend)

    correct = case_with_ignored_tokens().log_probabilities(backend=backend)[1]
    assert correct.any()


@pytest.mark.parametrize(
    ("tokens", "vocabulary"), [(1, 184_622), (17, 92_311), (4097, 1000), (17, 1000)]
)
def test_ragged_sizes(tokens, vocabulary):
    assert_torchs(HeadCase.random(tokens, vocabulary, 4))


@pytest.mark.parametrize("chunk_size", [1, 5, 12, 100])
def test_chunks_change_nothing(chunk_size):
    assert_torchs(case_with_ignored_tokens(), chunk_size=chunk_size)


def test_fp32_is_exact_to_a_millionth():
    single = HeadCase.random(500, 1001, 32, torch.float32)
    single.labels[::7] = IGNORE

    log_prob, _, entropy, *gradients = single.log_probabilities(chunk_size=128)

    exact = single.to(torch.float64).log_probabilities_by_torch()
    assert log_prob.dtype == entropy.dtype == torch.float32
    for found, wanted in zip([log_prob, entropy, *gradients], [exact[0], *exact[2:]], strict=True):
        assert error(found, wanted) < 1e-6


def test_bf16_is_no_worse_than_torchs():
    half = HeadCase.random(256, 1000, 64).to(torch.bfloat16)

    found = half.log_probabilities()

    exact = half.to(torch.float64).log_probabilities_by_torch()
    plain = half.log_probabilities_by_torch()
    assert [t.dtype for t in found] == [t.dtype for t in plain]
    for member in (0, 2, 3, 4):
        assert error(found[member], exact[member]) <= 1.5 * error(plain[member], exact[member])


def test_logits_of_thousands_do_not_overflow():
    case = HeadCase.random(TOKENS, VOCAB, HIDDEN, torch.float32)

    values = replace(case, hidden=case.hidden * 1e3).log_probabilities()

    assert all(torch.isfinite(value).all() for value in values)


def test_two_runs_are_bit_equal():
    case = HeadCase.random(300, 1000, 16, torch.float32)

    first, second = (case.log_probabilities(chunk_size=128) for _ in range(2))

    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_minus_the_sum_is_the_loss_of_equal_weights():
    case = replace(case_with_ignored_tokens(), weights=torch.ones(TOKENS, dtype=torch.float64))
    sums, by_hidden, by_head = case(chunk_size=5)

    hidden, head = (t.clone().requires_grad_() for t in (case.hidden, case.head))
    loss = -token_log_probabilities(hidden, head, case.labels, vocab_size=VOCAB).log_prob.sum()
    loss.backward()

    for found, wanted in ((loss, sums.loss), (hidden.grad, by_hidden), (head.grad, by_head)):
        torch.testing.assert_close(found, wanted, **FP64)


# Labels that are none.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", [0, TOKENS])
def test_without_any_label_there_is_no_gradient(backend, tokens):
    case = HeadCase.random(TOKENS, VOCAB, HIDDEN).take(slice(tokens))
    case.labels[:] = IGNORE

    log_prob, correct, entropy, by_hidden, by_head = case.log_probabilities(backend=backend)

    assert log_prob.shape == correct.shape == entropy.shape == (tokens,)
    assert by_hidden.shape == (tokens, HIDDEN)
    assert not any(t.any() for t in (log_prob, correct, entropy, by_hidden, by_head))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("label", [VOCAB, -1, -7])
def test_a_label_outside_the_vocabulary_is_nan(label, backend):
    case = replace(HeadCase.random(2, VOCAB, HIDDEN), labels=torch.tensor([label, 3])).padded(1)

    log_prob, correct, *_ = case.log_probabilities(backend=backend)

    assert log_prob.isnan().tolist() == [True, False]
    assert not correct[0]


@pytest.mark.parametrize("value", [1e3, -1e3, torch.inf, torch.nan])
def test_padding_rows_never_enter(value):
    case = case_with_ignored_tokens()

    *found, by_head = case.padded(11, value).log_probabilities()

    *wanted, expected_by_head = case.log_probabilities_by_torch()
    for ours, torchs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, torchs, **FP64)
    torch.testing.assert_close(by_head[:VOCAB], expected_by_head, **FP64)
    assert not by_head[VOCAB:].any()


# What is computed when.


@pytest.mark.parametrize("ignored", [0, 100])
def test_four_products_and_none_for_ignored_tokens(ignored):
    case = HeadCase.random(300, 1000, 16)
    case.labels[:ignored] = IGNORE
    hidden, head = (t.clone().requires_grad_() for t in (case.hidden, case.head))
    product = 2 * (300 - ignored) * 16 * 1000

    with FlopCounterMode(display=False) as forward:
        values = token_log_probabilities(hidden, head, case.labels, vocab_size=1000, chunk_size=128)
    with FlopCounterMode(display=False) as backward:
        contrast(values.log_prob).backward()

    assert forward.get_total_flops() == product
    assert backward.get_total_flops() == 3 * product


def test_logits_exist_for_one_chunk_only():
    case = HeadCase.random(1024, 1000, 4)
    case.labels[::5] = IGNORE
    hidden, head = (t.clone().requires_grad_() for t in (case.hidden, case.head))

    with Outputs() as forward:
        values = token_log_probabilities(hidden, head, case.labels, vocab_size=1000, chunk_size=128)
    with Outputs() as backward:
        contrast(values.log_prob).backward()

    assert {"mm", "addmm"} <= forward.names | backward.names, "the products must have been seen"
    assert forward.largest == 128 * 1024  # 1,000 columns padded to a multiple of 128
    assert backward.largest == 128 * 1024


def test_where_every_token_has_a_label_nothing_is_gathered():
    case = HeadCase.random(TOKENS, VOCAB, HIDDEN)

    with Outputs() as outputs:
        case.log_probabilities(kept_k=torch.arange(TOKENS), chunk_size=5)

    assert outputs.names.isdisjoint({"index", "index_select", "index_copy", "nonzero"})


def test_kept_tokens_that_the_caller_knows_are_not_searched_for():
    case = case_with_ignored_tokens()
    kept = torch.tensor([token for token in range(TOKENS) if token % 3 != 1])

    with Outputs() as outputs:
        found = case.log_probabilities(kept_k=kept)

    assert "nonzero" not in outputs.names
    for one, other in zip(found, case.log_probabilities(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("frozen", ["hidden", "head"])
def test_a_gradient_that_nobody_wants_is_not_computed(frozen):
    case = case_with_ignored_tokens()
    hidden, head = case.hidden.clone(), case.head.clone()
    wanted = (head if frozen == "hidden" else hidden).requires_grad_()

    with FlopCounterMode(display=False) as counter:
        values = token_log_probabilities(hidden, head, case.labels, vocab_size=VOCAB)
        contrast(values.log_prob).backward()

    expected = case.log_probabilities_by_torch()[4 if frozen == "hidden" else 3]
    torch.testing.assert_close(wanted.grad, expected, **FP64)
    assert counter.get_total_flops() == 3 * (2 * 8 * HIDDEN * VOCAB)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["of the sums", "another"])
def test_the_weight_gradient_is_added_to_the_main_gradient(dtype):
    case = case_with_ignored_tokens()
    main_grad = torch.ones(VOCAB + 3, HIDDEN, dtype=dtype)

    for _ in range(2):
        *_, by_head = case.padded(3).log_probabilities(main_grad_vh=main_grad, chunk_size=5)
        assert by_head is None

    expected = 1 + 2 * case.log_probabilities_by_torch()[4]
    torch.testing.assert_close(main_grad[:VOCAB], expected.to(dtype))
    assert (main_grad[VOCAB:] == 1).all()


def test_a_loss_and_log_probabilities_add_to_one_main_gradient():
    case = case_with_ignored_tokens()
    main_grad = torch.zeros(VOCAB, HIDDEN, dtype=torch.float64)
    hidden, head = (t.clone().requires_grad_() for t in (case.hidden, case.head))
    settings = {"vocab_size": VOCAB, "main_grad_vh": main_grad}

    targets = case.labels, case.weights, case.classes
    loss = linear_cross_entropy(hidden, head, *targets, **settings).loss
    log_prob = token_log_probabilities(hidden, head, case.labels, **settings).log_prob
    (loss + contrast(log_prob)).backward()

    expected = case.by_torch()[2] + case.log_probabilities_by_torch()[4]
    torch.testing.assert_close(main_grad, expected, **FP64)
    assert head.grad is None


def test_a_second_derivative_is_refused():
    case = HeadCase.random(TOKENS, VOCAB, HIDDEN)
    hidden = case.hidden.clone().requires_grad_()
    log_prob = token_log_probabilities(hidden, case.head, case.labels, vocab_size=VOCAB).log_prob

    (first,) = torch.autograd.grad(log_prob.square().sum(), hidden, create_graph=True)

    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


# What cannot be.


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"main_grad_vh": torch.zeros(VOCAB, 1)}, r"main_grad_vh is \[21, 1\]"),
        ({"kept_k": torch.arange(TOKENS + 1)}, r"kept_k is torch.int64 \[13\]"),
        ({"backend": "best"}, "no backend 'best'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        HeadCase.random(TOKENS, VOCAB, HIDDEN).log_probabilities(**setting)


def test_labels_that_do_not_fit_are_refused():
    case = HeadCase.random(TOKENS, VOCAB, HIDDEN)
    with pytest.raises(ValueError, match="12 hidden states do not fit 3 labels"):
        replace(case, labels=case.labels[:3]).log_probabilities()
