"""The fused head and loss, against torch's cross-entropy in fp64 and across gloo processes."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.distributed as dist
from emu3_kernels.exchange import GroupExchange
from emu3_kernels.linear_cross_entropy import IGNORE, linear_cross_entropy
from support.processes import run_processes
from torch.nn.functional import cross_entropy

TOKENS, HIDDEN, VOCAB = 12, 6, 21
FP64 = {"rtol": 1e-12, "atol": 1e-12}


@dataclass(frozen=True)
class Case:
    hidden: torch.Tensor
    head: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    classes: torch.Tensor

    def __call__(self, **settings):
        """The sums, and the loss's gradients by hidden states and head."""
        hidden, head = (t.clone().requires_grad_() for t in (self.hidden, self.head))
        settings = {"vocab_size": VOCAB, **settings}
        sums = linear_cross_entropy(
            hidden, head, self.labels, self.weights, self.classes, **settings
        )
        sums.loss.backward()
        return sums, hidden.grad, head.grad

    def expected(self, z_loss=0.0):
        """The same by torch: loss, gradients, and the nll of each token."""
        hidden, head = (t.clone().requires_grad_() for t in (self.hidden, self.head))
        logits = hidden @ head.T
        nll = cross_entropy(logits, self.labels, reduction="none", ignore_index=IGNORE)
        kept = self.labels != IGNORE
        loss = (self.weights * kept * (nll + z_loss * logits.logsumexp(1) ** 2)).sum()
        loss.backward()
        return loss.detach(), hidden.grad, head.grad, nll.detach()


@pytest.fixture
def case():
    return random_case()


def random_case():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    return Case(
        hidden=draw(TOKENS, HIDDEN),
        head=draw(VOCAB, HIDDEN),
        labels=torch.randint(VOCAB, (TOKENS,), generator=generator),
        weights=torch.tensor([1.0, 0.5, 0.0, 2.0] * 3, dtype=torch.float64),
        classes=torch.arange(TOKENS) % 3,
    )


def padded(case, rows, value=1e3):
    """The case with rows past the vocabulary that would win every softmax."""
    padding = torch.full((rows, HIDDEN), value, dtype=case.head.dtype)
    return replace(case, head=torch.cat([case.head, padding]))


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_loss_and_gradients_are_torchs(case, z_loss):
    sums, by_hidden, by_head = case(z_loss=z_loss)

    loss, expected_by_hidden, expected_by_head, _ = case.expected(z_loss)
    torch.testing.assert_close(sums.loss.detach(), loss, **FP64)
    torch.testing.assert_close(by_hidden, expected_by_hidden, **FP64)
    torch.testing.assert_close(by_head, expected_by_head, **FP64)
    assert sums.weight.item() == 3 * (1.0 + 0.5 + 0.0 + 2.0)


def test_z_loss_by_hand():
    # Two logits of 0: log-sum-exp is ln 2, and so is the nll.
    sums = linear_cross_entropy(
        torch.zeros(1, 4),
        torch.zeros(2, 4),
        torch.tensor([1]),
        torch.tensor([3.0]),
        torch.tensor([0]),
        vocab_size=2,
        z_loss=0.5,
    )

    ln2 = 0.6931471805599453
    assert sums.loss.item() == pytest.approx(3 * (ln2 + 0.5 * ln2**2), rel=1e-6)
    assert sums.nll.tolist() == pytest.approx([ln2, 0, 0], rel=1e-6)


def test_ignored_tokens_count_nowhere(case):
    half = TOKENS // 2
    ignoring = replace(case, labels=torch.where(torch.arange(TOKENS) < half, case.labels, IGNORE))
    shorter = Case(
        case.hidden[:half],
        case.head,
        *(t[:half] for t in (case.labels, case.weights, case.classes)),
    )

    sums, by_hidden, by_head = ignoring(z_loss=0.1)
    expected, _, expected_by_head = shorter(z_loss=0.1)

    for found, wanted in zip(sums, expected, strict=True):
        torch.testing.assert_close(found, wanted, **FP64)
    torch.testing.assert_close(by_head, expected_by_head, **FP64)
    assert by_hidden[half:].abs().max() == 0


def test_a_weight_of_zero_leaves_the_loss_but_is_measured(case):
    silent = replace(case, weights=torch.zeros(TOKENS, dtype=torch.float64))

    sums, by_hidden, by_head = silent(z_loss=0.1)

    assert sums.loss == sums.weight == by_hidden.abs().max() == by_head.abs().max() == 0
    torch.testing.assert_close(sums.nll, case()[0].nll, **FP64)
    assert sums.count.tolist() == [4, 4, 4]


def test_sums_by_class_by_hand():
    hidden = torch.eye(4, dtype=torch.float64)  # so that row i of the logits is column i of head
    head = torch.tensor([[5.0, 0, 1, 0], [0, 5, 2, 0], [0, 0, 3, 0]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 2])  # right, right, wrong, and one of three equal logits
    classes = torch.tensor([0, 2, 2, 0])
    weights = torch.ones(4, dtype=torch.float64)

    sums = linear_cross_entropy(hidden, head, labels, weights, classes, vocab_size=3)

    nll = cross_entropy(head.T, labels, reduction="none")
    torch.testing.assert_close(
        sums.nll, torch.stack([nll[0] + nll[3], nll[0] * 0, nll[1] + nll[2]])
    )
    assert sums.count.tolist() == [2, 0, 2]
    assert sums.correct.tolist() == [2, 0, 1]


def test_no_tokens(case):
    sums, by_hidden, by_head = Case(
        case.hidden[:0], case.head, *(t[:0] for t in (case.labels, case.weights, case.classes))
    )(z_loss=0.1)

    assert [part.abs().sum().item() for part in sums] == [0] * 5
    assert by_hidden.shape == (0, HIDDEN)
    assert by_head.abs().max() == 0


@pytest.mark.parametrize("value", [1e3, -1e3, torch.inf, torch.nan])
def test_padding_rows_never_enter(case, value):
    sums, by_hidden, by_head = padded(case, 11, value)(z_loss=0.1)

    expected, expected_by_hidden, expected_by_head = case(z_loss=0.1)
    for found, wanted in zip(sums, expected, strict=True):
        torch.testing.assert_close(found, wanted, **FP64)
    torch.testing.assert_close(by_hidden, expected_by_hidden, **FP64)
    torch.testing.assert_close(by_head[:VOCAB], expected_by_head, **FP64)
    assert by_head[VOCAB:].abs().max() == 0


def test_logits_of_thousands_do_not_overflow(case):
    large = replace(case, hidden=case.hidden.float() * 1e3, head=case.head.float())

    sums, by_hidden, _ = large()

    assert torch.isfinite(sums.loss)
    assert torch.isfinite(by_hidden).all()


def test_fp32_is_exact_to_a_few_eps(case):
    single = replace(
        case, hidden=case.hidden.float(), head=case.head.float(), weights=case.weights.float()
    )

    sums, by_hidden, by_head = single()

    # What fp32 would be off by if only its inputs were rounded.
    double = replace(single, hidden=single.hidden.double(), head=single.head.double())
    loss, expected_by_hidden, expected_by_head, _ = double.expected()
    eps = torch.finfo(torch.float32).eps
    assert sums.loss.dtype == torch.float32
    assert abs(sums.loss.item() - loss.item()) < 4 * eps * loss.item()
    for found, wanted in ((by_hidden, expected_by_hidden), (by_head, expected_by_head)):
        assert (found - wanted).abs().max() < 8 * eps * wanted.abs().max()


def test_bf16_inputs_give_fp32_sums(case):
    half = replace(case, hidden=case.hidden.bfloat16(), head=case.head.bfloat16())

    sums, by_hidden, _ = half()

    assert {part.dtype for part in sums} == {torch.float32}
    assert by_hidden.dtype == torch.bfloat16


# Vocabulary parallel: 21 ids in shares of equal rows.


def sums_of_a_rank(rows_a_rank):
    """This rank's sums and gradients, of a case with labels on every border between shares."""
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    whole = bordered_case(rows_a_rank)
    padding = size * rows_a_rank - VOCAB
    share = padded(whole, padding).head[rank * rows_a_rank : (rank + 1) * rows_a_rank]
    exchange = GroupExchange(dist.group.WORLD)
    sums, by_hidden, by_head = replace(whole, head=share)(z_loss=0.1, exchange=exchange)
    dist.destroy_process_group()
    return [part.detach().numpy() for part in (*sums, by_hidden, by_head)]


def bordered_case(rows_a_rank):
    case = random_case()
    first_rows = torch.arange(0, VOCAB, rows_a_rank)
    borders = torch.cat([first_rows, first_rows[1:] - 1, torch.tensor([VOCAB - 1])])
    labels = case.labels.clone()
    labels[: len(borders)] = borders
    labels[-1] = IGNORE
    return replace(case, labels=labels)


@pytest.mark.parametrize(
    ("ranks", "rows"),
    [(2, 11), (4, 6), (4, 7), (2, 21)],
    ids=["2 ranks", "4 ranks", "a rank of padding alone", "half of it padding"],
)
def test_ranks_that_share_the_vocabulary_agree_with_one(ranks, rows):
    results = run_processes(sums_of_a_rank, ranks, rows)

    sums, by_hidden, by_head = bordered_case(rows)(z_loss=0.1)
    for *found, found_by_hidden, _ in results:
        for part, wanted in zip(found, sums, strict=True):
            torch.testing.assert_close(torch.from_numpy(part), wanted.detach(), **FP64)
        torch.testing.assert_close(torch.from_numpy(found_by_hidden), by_hidden, **FP64)
    gathered = torch.cat([torch.from_numpy(by_head) for *_, by_head in results])
    torch.testing.assert_close(gathered[:VOCAB], by_head, **FP64)
    assert gathered[VOCAB:].abs().sum() == 0
