"""Head and loss on the GPU in bf16: against fp64, beside plain bf16 torch, bit-equal on repeat."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from emu3_kernels import cuda
from emu3_kernels.exchange import GroupExchange
from emu3_kernels.linear_cross_entropy import IGNORE
from emu3_kernels.linear_cross_entropy.backends import choose
from emu3_kernels.linear_cross_entropy.chunks import merge
from support.heads import HeadCase, error
from support.simulated_ranks import simulate

pytestmark = pytest.mark.gpu

BACKENDS = ["triton", "cuda"]
SIZES = [(1, 1000), (17, 92_311), (4097, 1000), (300, 184_622)]


def bf16_case(tokens, vocabulary, hidden=256, deviation=3):
    """Logits of a standard deviation."""
    case = HeadCase.random(tokens, vocabulary, hidden, device="cuda")
    return replace(case, head=case.head * deviation * hidden**-0.5).to(torch.bfloat16)


@pytest.fixture(autouse=True)
def library():
    assert cuda.available(), "build it first: make csrc"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("tokens", "vocabulary"), SIZES)
def test_errors_are_no_more_than_twice_those_of_torch(backend, tokens, vocabulary):
    case = bf16_case(tokens, vocabulary)

    sums, *found = case(backend=backend, chunk_size=1024)

    exact = case.to(torch.float64).by_torch()
    plain = case.by_torch()
    # An fp16 logit below 16 is off by 1/256 at most; many tokens even that out, one does not.
    torch.testing.assert_close(sums.loss.detach().double(), exact[0], rtol=1e-3, atol=2 / 256)
    for ours, torchs, wanted in zip(found, plain[1:3], exact[1:3], strict=True):
        assert error(ours, wanted) <= max(2 * error(torchs, wanted), 2.5e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("deviation", [2, 4, 6])
def test_gradients_are_close_to_fp64s_whatever_the_logits(backend, deviation):
    case = bf16_case(32, 20_011, deviation=deviation)

    _, *found = case(backend=backend)

    _, *exact = case.to(torch.float64).by_torch()
    for ours, wanted in zip(found, exact[:2], strict=True):
        assert error(ours, wanted) <= 2.5e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [torch.nan, 1e3], ids=["NaN", "would win"])
def test_padding_of_the_weight_enters_no_product(backend, value):
    case = bf16_case(300, 9_311)

    sums, by_hidden, by_head = case.padded(33, value)(backend=backend, chunk_size=128)

    expected, expected_by_hidden, expected_by_head = case(backend=backend, chunk_size=128)
    assert torch.equal(sums.loss, expected.loss)
    assert torch.equal(by_hidden, expected_by_hidden)
    assert torch.equal(by_head[:9_311], expected_by_head)
    assert not by_head[9_311:].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_z_loss_and_sums_are_those_of_the_reference(backend):
    case = bf16_case(515, 92_311)
    case.labels[:7] = IGNORE

    found = case(backend=backend, z_loss=1e-2, chunk_size=128)
    wanted = case.to(torch.float64)(backend="reference", z_loss=1e-2)

    for name in ("loss", "weight", "nll", "count"):
        ours, exact = (getattr(sums, name).detach().double() for sums in (found[0], wanted[0]))
        torch.testing.assert_close(ours, exact, rtol=1e-3, atol=1e-3)
    for ours, exact in zip(found[1:], wanted[1:], strict=True):
        assert error(ours, exact) < 5e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_are_bit_equal(backend):
    case = bf16_case(4097, 92_311, 128)

    first, second = (case(backend=backend, z_loss=1e-3, chunk_size=1024) for _ in range(2))

    for one, other in zip([*first[0], *first[1:]], [*second[0], *second[1:]], strict=True):
        assert torch.equal(one, other)


def test_cuda_and_triton_agree():
    case = bf16_case(1000, 184_622)

    ours, *found = case(backend="cuda")
    theirs, *wanted = case(backend="triton")

    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-5, atol=0)
    for one, other in zip(found, wanted, strict=True):
        assert error(one, other) < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_eight_simulated_ranks_agree_with_one(backend):
    case = bf16_case(300, 184_622, 64)
    whole = case.padded(8 * 23_168 - 184_622)

    def call(exchange):
        share = whole.share(exchange.rank, exchange.size)
        hidden, head = (t.clone().requires_grad_() for t in (share.hidden, share.head))
        sums = share.sums(hidden, head, exchange=exchange, backend=backend, chunk_size=128)
        return sums, hidden, head

    # Forward alone runs in threads: the GPU's backward passes share one thread of torch's.
    results = simulate(8, call)
    for sums, *_ in results:
        sums.loss.backward()

    expected, by_hidden, by_head = case(backend=backend)
    for sums, hidden, _ in results:
        torch.testing.assert_close(sums.loss, expected.loss, rtol=1e-4, atol=0)
        assert error(hidden.grad, by_hidden) < 5e-3
    gathered = torch.cat([head.grad for *_, head in results])
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

    found = case(backend="triton", chunk_size=128, exchange=exchange)

    alone = case(backend="triton", chunk_size=128)
    for one, other in zip([*found[0], *found[1:]], [*alone[0], *alone[1:]], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_past_two_billion_logits(backend):
    tokens, columns = 12_000, 184_622
    space = torch.zeros(tokens, 184_704, dtype=torch.float16, device="cuda")
    assert space.numel() > 1 << 31
    logits = space[:, :columns]
    logits[-1] = 4 * torch.randn(columns, device="cuda")
    exact = logits[-1].double()
    labels = torch.full((tokens,), columns - 1, device="cuda")
    rows, gradient = choose(backend, logits.view(torch.bfloat16)), logits.view(torch.bfloat16)

    statistics = rows.statistics(logits, labels)
    lse = merge(statistics[None])[1]
    weights = torch.ones(tokens, device="cuda")
    rows.gradient(logits, labels, weights, statistics, lse, 0.0, gradient)

    torch.testing.assert_close(lse[-1].double(), exact.logsumexp(0), rtol=1e-6, atol=4e-6)
    expected = exact.softmax(0)
    expected[-1] -= 1
    assert error(gradient[-1], expected) < 2**-8


def test_the_main_gradient_is_kept_in_fp32():
    case = bf16_case(600, 1000)
    main_grad = torch.zeros(1000, 256, device="cuda")

    case(backend="triton", scale=0.5, main_grad_vh=main_grad)

    _, _, by_head = case(backend="triton")
    assert torch.equal((2 * main_grad).bfloat16(), by_head)
    assert not torch.equal(2 * main_grad, by_head.float())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_known_scale_adds_to_the_main_gradient_in_forward(backend):
    case = bf16_case(600, 9_311)
    found, expected = (torch.ones(9_311, 256, device="cuda") for _ in range(2))
    scale = torch.tensor(0.5, device="cuda")

    _, by_hidden, _ = case(backend=backend, scale=scale, main_grad_vh=found, known_scale=scale)

    _, wanted, _ = case(backend=backend, scale=scale, main_grad_vh=expected)
    assert torch.equal(by_hidden, wanted)  # powers of two change no rounding
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_peak_memory_is_that_of_one_chunk():
    case = bf16_case(8192, 50_000, 64)
    logits_bytes = 8192 * 50_000 * 2
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()

    case(backend="triton", chunk_size=1024)

    assert torch.cuda.max_memory_allocated() - before < logits_bytes / 4
