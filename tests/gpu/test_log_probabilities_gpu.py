"""Log-probabilities on the GPU in bf16: against fp64, beside plain bf16 torch."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from emu3_kernels import cuda
from emu3_kernels.exchange import GroupExchange
from emu3_kernels.linear_cross_entropy import IGNORE, token_log_probabilities
from support.heads import HeadCase, contrast, error
from support.simulated_ranks import simulate

pytestmark = pytest.mark.gpu

BACKENDS = ["triton", "cuda"]
SIZES = [(17, 92_311), (4097, 1000), (300, 184_622)]


def bf16_case(tokens, vocabulary, hidden=256):
    """Logits of a few units; every seventh token has no label."""
    case = HeadCase.random(tokens, vocabulary, hidden, device="cuda")
    case.labels[::7] = IGNORE
    return replace(case, head=case.head * 3 * hidden**-0.5).to(torch.bfloat16)


@pytest.fixture(autouse=True)
def library():
    assert cuda.available(), "build it first: make csrc"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("tokens", "vocabulary"), SIZES)
def test_errors_are_no_more_than_one_and_a_half_those_of_torch(backend, tokens, vocabulary):
    case = bf16_case(tokens, vocabulary)

    found = case.log_probabilities(backend=backend, chunk_size=1024)

    exact = case.to(torch.float64).log_probabilities_by_torch()
    plain = case.log_probabilities_by_torch()
    for member in (0, 2, 3, 4):
        wanted = exact[member]
        assert error(found[member], wanted) <= 1.5 * error(plain[member], wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_are_bit_equal(backend):
    case = bf16_case(4097, 92_311, 128)

    first, second = (case.log_probabilities(backend=backend, chunk_size=1024) for _ in range(2))

    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_eight_simulated_ranks_agree_with_one(backend):
    case = bf16_case(300, 184_622, 64)
    whole = case.padded(8 * 23_168 - 184_622)

    def call(exchange):
        share = whole.share(exchange.rank, exchange.size)
        head = share.head.clone().requires_grad_()
        settings = {"exchange": exchange, "backend": backend, "chunk_size": 128}
        values = token_log_probabilities(
            share.hidden, head, share.labels, vocab_size=case.vocab_size, **settings
        )
        return values, head

    # Forward alone runs in threads: the GPU's backward passes share one thread of torch's. That of
    # the head exchanges nothing.
    results = simulate(8, call)
    for values, _ in results:
        contrast(values.log_prob).backward()

    log_prob, _, entropy, _, by_head = case.log_probabilities(backend=backend)
    for values, _ in results:
        torch.testing.assert_close(values.log_prob.detach(), log_prob, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(values.entropy, entropy, rtol=1e-4, atol=1e-4)
    gathered = torch.cat([head.grad for _, head in results])
    assert error(gathered[: case.vocab_size], by_head) < 5e-3
    assert not gathered[case.vocab_size :].any()


@pytest.fixture
def group():
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("tokens_divided", [False, True], ids=["tokens whole", "tokens divided"])
def test_a_process_group_of_one_changes_nothing(group, tokens_divided):
    case = bf16_case(515, 9_311)
    exchange = GroupExchange(group, tokens_divided=tokens_divided)

    found = case.log_probabilities(backend="triton", chunk_size=128, exchange=exchange)

    alone = case.log_probabilities(backend="triton", chunk_size=128)
    assert all(torch.equal(one, other) for one, other in zip(found, alone, strict=True))


def test_the_main_gradient_is_kept_in_fp32():
    case = bf16_case(600, 1000)
    main_grad = torch.zeros(1000, 256, device="cuda")

    case.log_probabilities(backend="triton", main_grad_vh=main_grad)

    by_head = case.log_probabilities(backend="triton")[4]
    assert torch.equal(main_grad.bfloat16(), by_head)
    assert not torch.equal(main_grad, by_head.float())


def test_peak_memory_is_that_of_one_chunk():
    case = bf16_case(8192, 50_000, 64)
    logits_bytes = 8192 * 50_000 * 2
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()

    case.log_probabilities(backend="triton", chunk_size=1024)

    assert torch.cuda.max_memory_allocated() - before < logits_bytes / 4


def test_with_kept_tokens_given_the_host_waits_for_nothing():
    case = bf16_case(600, 1000)
    kept = (case.labels != IGNORE).nonzero()[:, 0]
    run = lambda: (
        case.log_probabilities(backend="triton", kept_k=kept),
        case(backend="triton", kept_k=kept),
    )
    run()  # compiles

    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
