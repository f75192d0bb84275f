"""The fused head and loss over ranks that share the vocabulary: gloo processes, simulated ranks."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from emu3_kernels.exchange import GroupExchange
from emu3_kernels.linear_cross_entropy import IGNORE
from support.heads import HeadCase
from support.processes import run_processes
from support.simulated_ranks import RecordingExchange, simulate

TOKENS, HIDDEN, VOCAB = 12, 6, 21
FP64 = {"rtol": 1e-12, "atol": 1e-12}
CODES_BEGIN = 1518  # in a vocabulary of 1,846 ids, a hundredth of Emu3's


def bordered_case(rows_a_rank):
    """Labels on every border between shares, and rows of padding that would win."""
    first_rows = torch.arange(0, VOCAB, rows_a_rank)
    borders = torch.cat([first_rows, first_rows[1:] - 1, torch.tensor([VOCAB - 1])])
    case = HeadCase.random(TOKENS, VOCAB, HIDDEN)
    labels = case.labels.clone()
    labels[: len(borders)] = borders
    labels[-1] = IGNORE
    return replace(case, labels=labels)


def sums_of_a_rank(rows_a_rank, backend, tokens_divided):
    dist.init_process_group("gloo")
    exchange = GroupExchange(dist.group.WORLD, tokens_divided=tokens_divided)
    whole = bordered_case(rows_a_rank).padded(exchange.size * rows_a_rank - VOCAB)
    results = call_as_rank(whole, exchange, tokens_divided, backend=backend)
    dist.destroy_process_group()
    return [part.detach().numpy() for part in results]


def call_as_rank(whole, exchange, tokens_divided, **settings):
    """Sums and gradients of one rank, in chunks of 5 tokens."""
    share = whole.share(exchange.rank, exchange.size)
    if tokens_divided:
        share = replace(share, hidden=share.hidden.chunk(exchange.size)[exchange.rank])
    sums, *gradients = share(z_loss=0.1, exchange=exchange, chunk_size=5, **settings)
    return [*sums, *gradients]


def assert_as_one_rank(results, case, tokens_divided=False):
    sums, by_hidden, by_head = case(z_loss=0.1)
    for *found, _, _ in results:
        for part, wanted in zip(found, sums, strict=True):
            torch.testing.assert_close(torch.as_tensor(part), wanted.detach(), **FP64)
    found_by_hidden = [torch.as_tensor(result[-2]) for result in results]
    if tokens_divided:
        found_by_hidden = [torch.cat(found_by_hidden)]
    for found in found_by_hidden:
        torch.testing.assert_close(found, by_hidden, **FP64)
    gathered = torch.cat([torch.as_tensor(result[-1]) for result in results])
    torch.testing.assert_close(gathered[: case.vocab_size], by_head, **FP64)
    assert gathered[case.vocab_size :].abs().sum() == 0


@pytest.mark.parametrize("tokens_divided", [False, True], ids=["tokens whole", "tokens divided"])
@pytest.mark.parametrize("backend", ["reference", "unfused"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_processes_agree_with_one(ranks, backend, tokens_divided):
    rows = -(-VOCAB // ranks)
    results = run_processes(sums_of_a_rank, ranks, rows, backend, tokens_divided)

    assert_as_one_rank(results, bordered_case(rows), tokens_divided)


def sums_before_and_after_no_tokens(backend):
    """Of a rank, for both kinds of exchange: what no tokens give, then what tokens give."""
    dist.init_process_group("gloo")
    results = []
    for tokens_divided in (False, True):
        exchange = GroupExchange(dist.group.WORLD, tokens_divided=tokens_divided)
        whole = bordered_case(11).padded(1)
        for case in (whole.take(slice(0)), whole):
            parts = call_as_rank(case, exchange, tokens_divided, backend=backend)
            results.append([part.detach().numpy() for part in parts])
    dist.destroy_process_group()
    return results


@pytest.mark.parametrize("backend", ["reference", "unfused"])
def test_no_tokens_leave_processes_in_step(backend):
    by_rank = run_processes(sums_before_and_after_no_tokens, 2, backend)

    case = bordered_case(11)
    for call, tokens_divided in enumerate([False, False, True, True]):
        of_call = [results[call] for results in by_rank]
        expected = case if call % 2 else case.take(slice(0))
        assert_as_one_rank(of_call, expected, tokens_divided)


@pytest.mark.parametrize("tokens_divided", [False, True], ids=["tokens whole", "tokens divided"])
@pytest.mark.parametrize(
    ("ranks", "rows"),
    [(2, 11), (4, 7), (2, 21), (6, 5)],
    ids=["ragged", "a rank of padding alone", "half of it padding", "six ranks"],
)
def test_simulated_ranks_agree_with_one(ranks, rows, tokens_divided):
    whole = bordered_case(rows).padded(ranks * rows - VOCAB)

    call = lambda exchange: call_as_rank(whole, exchange, tokens_divided)
    results = simulate(ranks, call, tokens_divided=tokens_divided)

    assert_as_one_rank(results, bordered_case(rows), tokens_divided)


def test_eight_ranks_whose_targets_all_lie_on_two():
    case = HeadCase.random(64, 1846, HIDDEN)
    labels = CODES_BEGIN + torch.arange(64) * 5
    whole = replace(case, labels=labels).padded(8 * 232 - 1846)
    assert set((labels // 232).tolist()) == {6, 7}

    results = simulate(8, lambda exchange: call_as_rank(whole, exchange, tokens_divided=False))

    assert_as_one_rank(results, replace(case, labels=labels))


def test_eight_ranks_at_emu3s_vocabulary():
    case = HeadCase.random(17, 184_622, 2)
    whole = case.padded(8 * 23_168 - 184_622)

    results = simulate(8, lambda exchange: call_as_rank(whole, exchange, tokens_divided=False))

    assert_as_one_rank(results, case)


def test_a_chunks_exchange_overlaps_the_next_chunks_product():
    case, events = HeadCase.random(TOKENS, VOCAB, HIDDEN), []

    sums, *_ = case(exchange=RecordingExchange(events), chunk_size=5)

    exchanges = ["start 0", "start 1", "end 0", "start 2", "end 1", "end 2"]
    assert events == [*exchanges, "start sum", "end sum"]
    torch.testing.assert_close(sums.loss.detach(), case.by_torch()[0], **FP64)
