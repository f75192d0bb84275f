"""Log-probabilities over ranks that share the vocabulary, the tokens, or both."""

import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from emu3_kernels.exchange import GroupExchange
from emu3_kernels.linear_cross_entropy import IGNORE, token_log_probabilities
from support.heads import HeadCase, contrast, error
from support.processes import run_processes
from support.simulated_ranks import RecordingExchange, simulate

HIDDEN, VOCAB = 16, 1001
LENGTHS = 20, 200  # of the two sides of a pair, and what is left is padding
TOKENS = 240
BETA = 0.01
FP64 = {"rtol": 1e-12, "atol": 1e-12}


def pair(dtype=torch.float64):
    """The two sides of a preference pair and padding; each side's first and last have no label."""
    case = HeadCase.random(TOKENS, VOCAB, HIDDEN, dtype)
    labels = case.labels.clone()
    begin = 0
    for length in LENGTHS:
        labels[[begin, begin + length - 1]] = IGNORE
        begin += length
    labels[begin:] = IGNORE
    return replace(case, head=case.head / HIDDEN**0.5, labels=labels)


def share_of(case, exchange, **settings):
    """What one of the ranks that share the vocabulary finds, in chunks of 64 tokens."""
    size = exchange.size
    whole = case.padded(size * -(-VOCAB // size) - VOCAB).share(exchange.rank, size)
    if exchange.tokens_divided:
        whole = replace(whole, hidden=whole.hidden.chunk(size)[exchange.rank])
    settings = {"chunk_size": 64, "exchange": exchange, **settings}
    return whole.log_probabilities(**settings)


def assert_as_one_rank(results, case, tokens_divided):
    """Values are equal on all ranks; the parts of the gradients make up the whole."""
    *values, by_hidden, by_head = case.log_probabilities_by_torch()
    for *found, _, _ in results:
        for ours, torchs in zip(found, values, strict=True):
            torch.testing.assert_close(torch.as_tensor(ours), torchs, **FP64)
    found_by_hidden = [torch.as_tensor(result[3]) for result in results]
    for found in [torch.cat(found_by_hidden)] if tokens_divided else found_by_hidden:
        torch.testing.assert_close(found, by_hidden, **FP64)
    found_by_head = torch.cat([torch.as_tensor(result[4]) for result in results])
    torch.testing.assert_close(found_by_head[:VOCAB], by_head, **FP64)
    assert not found_by_head[VOCAB:].any()


@pytest.mark.parametrize("backend", ["reference", "unfused"])
@pytest.mark.parametrize("tokens_divided", [False, True], ids=["tokens whole", "tokens divided"])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_any_number_of_ranks_gives_torchs(ranks, tokens_divided, backend):
    case = pair()

    results = simulate(
        ranks, lambda one: share_of(case, one, backend=backend), tokens_divided=tokens_divided
    )

    assert_as_one_rank(results, case, tokens_divided)


@pytest.mark.parametrize("tokens_divided", [False, True], ids=["tokens whole", "tokens divided"])
def test_a_rank_of_padding_alone(tokens_divided):
    case = HeadCase.random(TOKENS, VOCAB, HIDDEN)
    whole = case.padded(4 * 400 - VOCAB)  # the last of four ranks holds none of the vocabulary

    def call(exchange):
        share = whole.share(exchange.rank, 4)
        if tokens_divided:
            share = replace(share, hidden=share.hidden.chunk(4)[exchange.rank])
        return share.log_probabilities(exchange=exchange, chunk_size=64)

    results = simulate(4, call, tokens_divided=tokens_divided)

    assert_as_one_rank(results, case, tokens_divided)


def of_a_process(tokens_divided):
    """Of one of two processes: what comes of no labels at all, then what of a pair."""
    dist.init_process_group("gloo")
    exchange = GroupExchange(dist.group.WORLD, tokens_divided=tokens_divided)
    case, results = pair(), []
    for labels in (torch.full_like(case.labels, IGNORE), case.labels):
        parts = share_of(replace(case, labels=labels), exchange)
        results.append([part.numpy() for part in parts])
    dist.destroy_process_group()
    return results


@pytest.mark.parametrize("tokens_divided", [False, True], ids=["tokens whole", "tokens divided"])
def test_processes_stay_in_step_where_no_token_has_a_label(tokens_divided):
    by_rank = run_processes(of_a_process, 2, tokens_divided)

    assert not any(part.any() for empty, _ in by_rank for part in empty)
    assert_as_one_rank([results for _, results in by_rank], pair(), tokens_divided)


# A pair, its tokens split among context ranks.


def preference_loss(log_prob, labels):
    """DPO's, against a reference to which all ids are equally likely."""
    difference = (log_prob.double() + math.log(VOCAB)).where(labels != IGNORE, 0.0)
    chosen, rejected, _ = difference.split([*LENGTHS, TOKENS - sum(LENGTHS)])
    return -torch.nn.functional.logsigmoid(BETA * (chosen.sum() - rejected.sum()))


def by_context_ranks(case, split, exchange):
    """Log-probabilities and gradients of the loss, from the parts of the tokens in turn."""
    size, rank = exchange.size, exchange.rank
    share = case.padded(size * -(-VOCAB // size) - VOCAB).share(rank, size)
    head = share.head.clone().requires_grad_()
    hidden, parts = [], []
    for tokens in split:
        mine = share.hidden[tokens]
        mine = mine.chunk(size)[rank] if exchange.tokens_divided else mine
        hidden.append(mine.clone().requires_grad_())
        settings = {"vocab_size": VOCAB, "exchange": exchange, "chunk_size": 64}
        found = token_log_probabilities(hidden[-1], head, case.labels[tokens], **settings)
        parts.append(found.log_prob)
    log_prob = torch.cat(parts)[torch.cat(split).argsort()]
    preference_loss(log_prob, case.labels).backward()
    return log_prob.detach(), [part.grad for part in hidden], head.grad


SPLITS = {
    "one rank": [torch.arange(TOKENS)],
    "in zigzag": [
        torch.cat([torch.arange(0, 60), torch.arange(180, 240)]),
        torch.arange(60, 180),
    ],
    "one of padding alone": [torch.arange(0, 220), torch.arange(220, 240)],
}


def by_torch(case):
    """Log-probabilities and gradients of the loss, in plain torch on one rank."""
    hidden, head = (t.clone().requires_grad_() for t in (case.hidden, case.head))
    logits = hidden @ head.T
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
    labels = case.labels.clamp(min=0)[:, None]
    log_prob = log_probs.gather(1, labels)[:, 0].where(case.labels != IGNORE, 0.0)
    preference_loss(log_prob, case.labels).backward()
    return log_prob.detach(), hidden.grad, head.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("tokens_divided", [False, True], ids=["tokens whole", "tokens divided"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("name", SPLITS)
def test_a_pairs_log_probabilities_and_gradients_are_fp64s(name, ranks, tokens_divided, dtype):
    case, split = pair(dtype), SPLITS[name]

    results = simulate(
        ranks, lambda one: by_context_ranks(case, split, one), tokens_divided=tokens_divided
    )

    of_part = [[result[1][part] for result in results] for part in range(len(split))]
    parts = [torch.cat(of) if tokens_divided else of[-1] for of in of_part]
    by_hidden = torch.cat(parts)[torch.cat(split).argsort()]
    by_head = torch.cat([result[2] for result in results])[:VOCAB]
    exact, plain = by_torch(case.to(torch.float64)), by_torch(case)
    found = results[0][0], by_hidden, by_head
    for ours, torchs, wanted in zip(found, plain, exact, strict=True):
        limit = 1e-6 if dtype == torch.float32 else 1.5 * error(torchs, wanted)
        assert error(ours, wanted) <= limit


# What overlaps.


def test_a_chunks_exchange_overlaps_the_next_chunks_product_and_backward_sums_alone():
    case, events = HeadCase.random(TOKENS, VOCAB, HIDDEN), []
    hidden = case.hidden.clone().requires_grad_()
    settings = {"vocab_size": VOCAB, "exchange": RecordingExchange(events), "chunk_size": 100}

    values = token_log_probabilities(hidden, case.head, case.labels, **settings)
    events.append("backward")
    contrast(values.log_prob).backward()

    forward = ["start 0", "start 1", "end 0", "start 2", "end 1", "end 2"]
    assert events == [*forward, "backward", "start sum", "end sum"]
    torch.testing.assert_close(hidden.grad, case.log_probabilities_by_torch()[3], **FP64)
