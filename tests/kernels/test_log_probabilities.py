"""Each token's log-probability, differentiable, against torch's log-softmax in fp64."""

from dataclasses import replace

import pytest
import torch
from emu3_kernels.exchange import NoExchange
from emu3_kernels.linear_cross_entropy import IGNORE, unfused_log_probabilities
from support.heads import HeadCase
from support.simulated_ranks import simulate
from torch.distributions import Categorical
from torch.nn.functional import linear, log_softmax

TOKENS, HIDDEN, VOCAB = 12, 6, 21
FP64 = {"rtol": 1e-12, "atol": 1e-12}


def case_with_ignored_tokens():
    """Every third token is ignored; the labels of every second are the likeliest ids."""
    case = HeadCase.random(TOKENS, VOCAB, HIDDEN)
    labels = torch.where(torch.arange(TOKENS) % 2 == 0, linear(case.hidden, case.head).argmax(1), 0)
    labels[1::3] = IGNORE
    return replace(case, labels=labels)


def loss_of(log_prob):
    """Any loss that is not linear in the log-probabilities."""
    return (log_prob.exp() * torch.arange(1, TOKENS + 1) + log_prob.square()).sum()


def by_torch(case):
    """Log-probabilities, correct, entropy, gradients by hidden states and head."""
    hidden, head = (t.clone().requires_grad_() for t in (case.hidden, case.head))
    kept = case.labels != IGNORE
    labels = case.labels.clamp(min=0)[:, None]
    logits = linear(hidden, head)
    log_prob = torch.where(kept, log_softmax(logits, 1).gather(1, labels)[:, 0], 0.0)
    loss_of(log_prob).backward()
    correct = kept & (logits.argmax(1) == case.labels)
    entropy = torch.where(kept, Categorical(logits=logits.detach()).entropy(), 0.0)
    return log_prob.detach(), correct, entropy, hidden.grad, head.grad


def by_ours(case, exchange=None):
    """The same of one rank, from its rows of the head and its part of the tokens."""
    exchange = exchange or NoExchange()
    share = case.share(exchange.rank, exchange.size)
    hidden = share.hidden
    if exchange.tokens_divided:
        hidden = hidden.chunk(exchange.size)[exchange.rank]
    hidden, head = (t.clone().requires_grad_() for t in (hidden, share.head))
    log_prob, correct, entropy = unfused_log_probabilities(
        hidden, head, share.labels, vocab_size=VOCAB, exchange=exchange
    )
    loss_of(log_prob).backward()
    return log_prob.detach(), correct, entropy, hidden.grad, head.grad


@pytest.mark.parametrize("tokens_divided", [False, True], ids=["tokens whole", "tokens divided"])
@pytest.mark.parametrize(
    ("ranks", "rows"), [(1, 21), (2, 11), (3, 7), (4, 7)], ids=["1", "2", "3", "4, one of padding"]
)
def test_any_number_of_ranks_gives_torchs(ranks, rows, tokens_divided):
    case = case_with_ignored_tokens()
    whole = case.padded(ranks * rows - VOCAB)

    results = simulate(ranks, lambda one: by_ours(whole, one), tokens_divided=tokens_divided)

    log_prob, correct, entropy, by_hidden, by_head = by_torch(case)
    assert 0 < correct.sum() < (case.labels != IGNORE).sum()
    for found, found_correct, found_entropy, _, _ in results:
        torch.testing.assert_close(found, log_prob, **FP64)
        assert torch.equal(found_correct, correct)
        torch.testing.assert_close(found_entropy, entropy, **FP64)
    found_by_hidden = [result[3] for result in results]
    if tokens_divided:
        found_by_hidden = [torch.cat(found_by_hidden)]
    for found in found_by_hidden:
        torch.testing.assert_close(found, by_hidden, **FP64)
    found_by_head = torch.cat([result[4] for result in results])
    torch.testing.assert_close(found_by_head[:VOCAB], by_head, **FP64)
    assert not found_by_head[VOCAB:].any()


def test_ignored_tokens_have_no_value_and_no_gradient():
    case = case_with_ignored_tokens()
    ignored = case.labels == IGNORE

    log_prob, correct, entropy, by_hidden, _ = by_ours(case)

    assert not log_prob[ignored].any()
    assert not correct[ignored].any()
    assert not entropy[ignored].any()
    assert not by_hidden[ignored].any()
    assert by_hidden[~ignored].any(1).all()


def test_a_label_outside_the_vocabulary_is_nan():
    case = replace(HeadCase.random(2, VOCAB, HIDDEN), labels=torch.tensor([VOCAB, 3])).padded(1)

    log_prob, correct, _ = unfused_log_probabilities(
        case.hidden, case.head, case.labels, vocab_size=VOCAB
    )

    assert log_prob.isnan().tolist() == [True, False]
    assert not correct[0]


def test_half_precision_gives_fp32():
    case = HeadCase.random(TOKENS, VOCAB, HIDDEN).to(torch.bfloat16)

    log_prob, *_ = unfused_log_probabilities(case.hidden, case.head, case.labels, vocab_size=VOCAB)

    assert log_prob.dtype == torch.float32
    logits = linear(case.hidden, case.head).float()
    expected = log_softmax(logits, 1).gather(1, case.labels[:, None])[:, 0]
    torch.testing.assert_close(log_prob, expected)


def test_labels_that_do_not_fit_are_refused():
    case = HeadCase.random(TOKENS, VOCAB, HIDDEN)
    with pytest.raises(ValueError, match="12 hidden states do not fit 3 labels"):
        unfused_log_probabilities(case.hidden, case.head, case.labels[:3], vocab_size=VOCAB)
