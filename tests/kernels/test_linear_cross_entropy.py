"""The fused head and loss on one rank, against torch's cross-entropy in fp64."""

from dataclasses import replace

import pytest
import torch
from emu3_kernels.linear_cross_entropy import IGNORE, backends, linear_cross_entropy, reference
from support.heads import HeadCase, Outputs, error
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

TOKENS, HIDDEN, VOCAB = 12, 6, 21
FP64 = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture
def case():
    return HeadCase.random(TOKENS, VOCAB, HIDDEN)


def assert_torchs(case, z_loss=0.0, **settings):
    sums, by_hidden, by_head = case(z_loss=z_loss, **settings)
    loss, expected_by_hidden, expected_by_head, _ = case.by_torch(z_loss)
    torch.testing.assert_close(sums.loss.detach(), loss, **FP64)
    torch.testing.assert_close(by_hidden, expected_by_hidden, **FP64)
    torch.testing.assert_close(by_head, expected_by_head, **FP64)


@pytest.mark.parametrize("backend", ["reference", "unfused"])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_loss_and_gradients_are_torchs(case, z_loss, backend):
    assert_torchs(case, z_loss, backend=backend)
    assert case()[0].weight.item() == 3 * (1.0 + 0.5 + 0.0 + 2.0)


@pytest.mark.parametrize(
    ("tokens", "vocabulary"), [(1, 184_622), (17, 92_311), (4097, 1000), (17, 1000)]
)
def test_ragged_sizes(tokens, vocabulary):
    assert_torchs(HeadCase.random(tokens, vocabulary, 4), z_loss=0.1)


@pytest.mark.parametrize("chunk_size", [1, 5, 12, 100])
def test_chunks_change_nothing(case, chunk_size):
    assert_torchs(case, z_loss=0.1, chunk_size=chunk_size)


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
    shorter = case.take(slice(half))

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
    sums, by_hidden, by_head = case.take(slice(0))(z_loss=0.1)

    assert [part.abs().sum().item() for part in sums] == [0] * 5
    assert by_hidden.shape == (0, HIDDEN)
    assert by_head.abs().max() == 0


@pytest.mark.parametrize("value", [1e3, -1e3, torch.inf, torch.nan])
def test_padding_rows_never_enter(case, value):
    sums, by_hidden, by_head = case.padded(11, value)(z_loss=0.1)

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
    single = case.to(torch.float32)

    sums, by_hidden, by_head = single()

    # What fp32 would be off by if only its inputs were rounded.
    loss, expected_by_hidden, expected_by_head, _ = single.to(torch.float64).by_torch()
    eps = torch.finfo(torch.float32).eps
    assert sums.loss.dtype == torch.float32
    assert abs(sums.loss.item() - loss.item()) < 4 * eps * loss.item()
    for found, wanted in ((by_hidden, expected_by_hidden), (by_head, expected_by_head)):
        assert (found - wanted).abs().max() < 8 * eps * wanted.abs().max()


def test_bf16_is_no_worse_than_torchs():
    half = HeadCase.random(256, 1000, 64).to(torch.bfloat16)

    sums, *found = half()

    exact = half.to(torch.float64).by_torch()
    torchs = half.by_torch()
    assert {part.dtype for part in sums} == {torch.float32}
    for ours, plain, wanted in zip(found, torchs[1:3], exact[1:3], strict=True):
        assert ours.dtype == torch.bfloat16
        assert error(ours, wanted) < min(2.5e-3, error(plain, wanted))


def test_two_runs_are_bit_equal():
    case = HeadCase.random(300, 1000, 16, torch.float32)

    first, second = (case(z_loss=0.1, chunk_size=128) for _ in range(2))

    for one, other in zip([*first[0], *first[1:]], [*second[0], *second[1:]], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("label", [VOCAB, -1, -7])
def test_a_label_outside_the_vocabulary_is_not_overlooked(case, label):
    labels = case.labels.clone()
    labels[0] = label

    assert replace(case, labels=labels)()[0].loss.isnan()


# What is computed when.


def test_nothing_is_computed_twice():
    tokens, vocabulary, hidden = 300, 1000, 16
    case = HeadCase.random(tokens, vocabulary, hidden)
    product = 2 * tokens * hidden * vocabulary

    inputs = case.hidden.clone().requires_grad_(), case.head.clone().requires_grad_()
    with FlopCounterMode(display=False) as forward:
        loss = case.sums(*inputs, chunk_size=128).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    with torch.no_grad(), FlopCounterMode(display=False) as evaluation:
        case.sums(*inputs, chunk_size=128)

    assert forward.get_total_flops() == 3 * product
    assert backward.get_total_flops() == 0
    assert evaluation.get_total_flops() == product


def test_backward_scales_by_what_comes(case):
    _, by_hidden, by_head = case(scale=3.0)

    _, expected_by_hidden, expected_by_head, _ = case.by_torch()
    torch.testing.assert_close(by_hidden, 3 * expected_by_hidden, **FP64)
    torch.testing.assert_close(by_head, 3 * expected_by_head, **FP64)


@pytest.mark.parametrize("frozen", ["hidden", "head"])
def test_a_gradient_that_nobody_wants_is_not_computed(case, frozen):
    hidden, head = case.hidden.clone(), case.head.clone()
    wanted = head if frozen == "hidden" else hidden
    wanted.requires_grad_()

    targets = case.labels, case.weights, case.classes
    linear_cross_entropy(hidden, head, *targets, vocab_size=VOCAB).loss.backward()

    expected = case.by_torch()[2 if frozen == "hidden" else 1]
    torch.testing.assert_close(wanted.grad, expected, **FP64)


def test_a_second_derivative_is_refused(case):
    hidden, head = case.hidden.clone().requires_grad_(), case.head
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    (first,) = torch.autograd.grad(scale * case.sums(hidden, head).loss, hidden, create_graph=True)

    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_evaluation_computes_no_gradient(case, monkeypatch):
    def gradient(*arguments):
        raise AssertionError("no gradient was asked for")

    monkeypatch.setattr(reference, "ROWS", replace(reference.ROWS, gradient=gradient))
    with torch.no_grad():
        targets = case.labels, case.weights, case.classes
        head = case.head.clone().requires_grad_()
        sums = linear_cross_entropy(case.hidden, head, *targets, vocab_size=VOCAB)

    torch.testing.assert_close(sums.loss, case.by_torch()[0], **FP64)


def test_the_weight_gradient_is_added_to_the_main_gradient(case):
    main_grad = torch.ones(VOCAB + 3, HIDDEN, dtype=torch.float64)

    for scale in (2.0, 0.5):  # two micro-batches under a loss scale
        _, _, by_head = case.padded(3)(scale=scale, main_grad_vh=main_grad)
        assert by_head is None

    expected = 1 + 2.5 * case.by_torch()[2]
    torch.testing.assert_close(main_grad[:VOCAB], expected, **FP64)
    assert (main_grad[VOCAB:] == 1).all()


def test_a_known_scale_adds_to_the_main_gradient_in_forward(case):
    case.labels[[0, 5]] = IGNORE
    found, expected = (torch.ones(VOCAB, HIDDEN, dtype=torch.float64) for _ in range(2))

    for value in (2.0, 0.5):  # two micro-batches
        scale = torch.tensor(value)
        settings = {"main_grad_vh": found, "known_scale": scale, "chunk_size": 5}
        with Outputs() as outputs:
            sums, by_hidden, by_head = case(scale=scale, z_loss=0.1, **settings)
        wanted = case(scale=scale, z_loss=0.1, main_grad_vh=expected)
        assert outputs.names.isdisjoint({"addcmul", "addcmul_"})
        torch.testing.assert_close(sums.loss, wanted[0].loss, **FP64)
        torch.testing.assert_close(by_hidden, wanted[1], **FP64)
        assert by_head is None

    torch.testing.assert_close(found, expected, **FP64)


def test_a_scale_that_was_not_the_one_said_is_not_overlooked(case):
    main_grad = torch.zeros(VOCAB, HIDDEN, dtype=torch.float64)

    _, by_hidden, _ = case(scale=3.0, main_grad_vh=main_grad, known_scale=torch.tensor(2.0))

    assert by_hidden.isnan().all()


@pytest.mark.parametrize(("scale", "most"), [(None, 1000 * HIDDEN), (1.0, 8 * HIDDEN)])
def test_with_a_known_scale_nothing_of_the_weights_size_is_kept(scale, most):
    case, sizes = HeadCase.random(8, 1000, HIDDEN), []
    known = None if scale is None else torch.tensor(scale)

    with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], id):
        case.sums(
            case.hidden.clone().requires_grad_(),
            case.head.clone().requires_grad_(),
            main_grad_vh=torch.zeros_like(case.head),
            known_scale=known,
        )

    assert max(sizes) == most


def test_an_evaluation_adds_nothing_to_the_main_gradient(case):
    main_grad = torch.zeros(VOCAB, HIDDEN, dtype=torch.float64)
    head = case.head.clone().requires_grad_()

    with torch.no_grad():
        case.sums(case.hidden, head, main_grad_vh=main_grad, known_scale=torch.tensor(1.0))

    assert not main_grad.any()


def test_a_backend_that_does_both_passes_at_once(case, monkeypatch):
    def whole(logits, labels, weights, z_loss, out):
        statistics = reference.statistics(logits, labels)
        lse = statistics[0] + statistics[1].log()
        reference.gradient(logits, labels, weights, statistics, lse, z_loss, out)
        return torch.stack([statistics[0], lse, statistics[2]])

    monkeypatch.setattr(reference, "ROWS", replace(reference.ROWS, whole=whole))
    assert_torchs(case, z_loss=0.1, chunk_size=5)


def test_logits_exist_for_one_chunk_only():
    case = HeadCase.random(1024, 1000, 4)
    case.labels[::5] = IGNORE

    with Outputs() as outputs:
        case(chunk_size=128)

    assert outputs.largest == 128 * 1024  # 128 tokens, 1,000 columns padded to a multiple of 128


# Tokens without a label.


def test_ignored_tokens_cost_no_product():
    case = HeadCase.random(300, 1000, 16)
    case.labels[::3] = IGNORE

    with FlopCounterMode(display=False) as counter:
        case(chunk_size=128)

    assert counter.get_total_flops() == 3 * (2 * 200 * 16 * 1000)


def test_where_every_token_has_a_label_nothing_is_gathered(case):
    with Outputs() as outputs:
        case(kept_k=torch.arange(TOKENS), chunk_size=5)

    assert outputs.names.isdisjoint({"index", "index_select", "index_copy_", "nonzero"})


def test_kept_tokens_that_the_caller_knows_are_not_searched_for(case):
    case.labels[[0, 5, 6]] = IGNORE
    kept = torch.tensor([1, 2, 3, 4, 7, 8, 9, 10, 11])

    with Outputs() as outputs:
        found = case(z_loss=0.1, kept_k=kept, chunk_size=5)

    assert "nonzero" not in outputs.names
    wanted = case(z_loss=0.1, chunk_size=5)
    for one, other in zip([*found[0], *found[1:]], [*wanted[0], *wanted[1:]], strict=True):
        assert torch.equal(one, other)


def test_all_tokens_ignored(case):
    case.labels[:] = IGNORE

    sums, by_hidden, by_head = case(z_loss=0.1)

    assert [part.abs().sum().item() for part in sums] == [0] * 5
    assert by_hidden.shape == (TOKENS, HIDDEN)
    assert by_hidden.abs().max() == by_head.abs().max() == 0


# What cannot be.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": torch.zeros(VOCAB, HIDDEN)}, "types and second sizes must be equal"),
        ({"weights": torch.zeros(3)}, "all of one length"),
        ({"hidden": torch.zeros(3, HIDDEN, dtype=torch.float64)}, "3 hidden states do not fit 12"),
        ({"labels": torch.zeros(TOKENS, dtype=torch.int32)}, "labels are torch.int32"),
        ({"vocab_size": VOCAB + 1}, "21 rows over all ranks do not fit a vocabulary of 22"),
    ],
)
def test_what_does_not_fit_is_refused(case, change, message):
    with pytest.raises(ValueError, match=message):
        replace(case, **change)()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"main_grad_vh": torch.zeros(VOCAB, 1)}, r"main_grad_vh is \[21, 1\]"),
        ({"kept_k": torch.ones(TOKENS, dtype=torch.bool)}, r"kept_k is torch.bool \[12\]"),
        ({"kept_k": torch.arange(TOKENS + 1)}, r"kept_k is torch.int64 \[13\]"),
    ],
)
def test_settings_that_do_not_fit_are_refused(case, setting, message):
    with pytest.raises(ValueError, match=message):
        case(**setting)


@pytest.mark.parametrize("backend", ["triton", "cuda", "best"])
def test_a_backend_that_cannot_serve_is_refused(case, backend, monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="backend"):
        case(backend=backend)


def test_unfused_adds_to_no_main_gradient(case):
    with pytest.raises(ValueError, match="unfused"):
        case(backend="unfused", main_grad_vh=case.head.clone())
