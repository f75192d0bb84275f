"""The entropy loss: its formula, its gradient, pieces and groups."""

import math

import pytest
import torch
from torch import Tensor

from emu3_megatron.tokenizer_training.losses.entropy import (
    MeanProbabilities,
    entropy_term,
    probability_sums,
)

TEMPERATURE = 0.7


def latents_and_book(samples=3, codes=11, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(samples, 2, 1, 2, 3, generator=generator, dtype=dtype)
    return latents, torch.randn(codes, 2, generator=generator, dtype=dtype)


def by_hand(latents: Tensor, book: Tensor) -> Tensor:
    """The loss of the whole batch, with every distance in memory."""
    rows = latents.movedim(1, -1).reshape(-1, 2)
    p = (-(torch.cdist(rows, book) ** 2) / TEMPERATURE).softmax(1)
    mean = p.mean(0)
    return -(p * p.log()).sum(1).mean() + (mean * mean.log()).sum()


def in_two_phases(latents: Tensor, book: Tensor, at_once=20, groups=(3,)) -> Tensor:
    parts = latents.split(groups)
    sums = sum(probability_sums(part, book, TEMPERATURE, at_once) for part in parts)
    mean = sums / len(latents)
    return torch.cat([entropy_term(part, book, mean, TEMPERATURE, at_once) for part in parts])


def test_it_is_that_of_its_formula():
    latents, book = latents_and_book()

    torch.testing.assert_close(in_two_phases(latents, book).mean(), by_hand(latents, book))


@pytest.mark.parametrize("groups", [(3,), (1, 2), (1, 1, 1)])
@pytest.mark.parametrize("at_once", [1, 50, 10_000])
def test_gradient_is_that_of_the_whole_batch_in_any_groups_and_pieces(groups, at_once):
    """Although the mean over the batch is a constant in it."""
    latents, book = (x.requires_grad_() for x in latents_and_book())
    expected = torch.autograd.grad(by_hand(latents, book), (latents, book))

    loss = in_two_phases(latents, book, at_once, groups).mean()

    for ours, theirs in zip(torch.autograd.grad(loss, (latents, book)), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradient_is_that_of_finite_differences():
    latents, book = (x.requires_grad_() for x in latents_and_book(samples=2, codes=5))
    mean = torch.rand(5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    term = lambda latents, book: entropy_term(latents, book, mean, TEMPERATURE, 20)

    assert torch.autograd.gradcheck(term, (latents, book))


def test_the_running_mean_follows_the_steps_and_is_in_the_state():
    latents, book = latents_and_book()
    kept, resumed = (MeanProbabilities(len(book), decay=0.75) for _ in range(2))
    sums = [probability_sums(latents * scale, book, TEMPERATURE) for scale in (1, 2, 3)]

    assert kept.mean.tolist() == [1 / 11] * 11
    for step in sums[:2]:
        kept.update(step, samples=3)
    torch.testing.assert_close(kept.mean, (0.75 * sums[0] + 0.25 * sums[1]) / 3)

    resumed.load_state_dict(kept.state_dict())
    for one in (kept, resumed):
        one.update(sums[2], samples=3)
    assert torch.equal(kept.mean, resumed.mean)


def test_sure_latents_that_use_all_codes_reach_the_least_value():
    book = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)) * 100
    latents = book.T.reshape(1, 4, 1, 2, 4)
    mean = probability_sums(latents, book, 1.0)

    assert mean.tolist() == pytest.approx([1 / 8] * 8)
    assert entropy_term(latents, book, mean, 1.0).item() == pytest.approx(-math.log(8))


def test_a_code_that_nobody_chooses_leaves_it_finite():
    latents, book = latents_and_book(dtype=torch.float32)
    book[0] = 1e4
    latents.requires_grad_()
    mean = probability_sums(latents, book, 1.0) / 3

    entropy_term(latents, book, mean, 1.0).sum().backward()

    assert mean[0] == 0
    assert latents.grad.isfinite().all()


def test_more_codes_come_into_use_with_it():
    """Codes that start far from the latents, drawn to them by the codebook term."""
    plain, with_entropy = perplexity_after_training(0.0), perplexity_after_training(0.1)

    assert with_entropy > 1.3 * plain


def perplexity_after_training(weight: float) -> float:
    generator = torch.Generator().manual_seed(0)
    book = (3 + 0.05 * torch.randn(64, 2, generator=generator)).requires_grad_()
    kept, optimizer = MeanProbabilities(len(book)), torch.optim.Adam([book], 6e-2)
    for _ in range(150):
        latents = torch.randn(4, 2, 1, 8, 8, generator=generator)
        rows = latents.movedim(1, -1).reshape(-1, 2)
        loss = (book[torch.cdist(rows, book).argmin(1)] - rows).square().mean()
        if weight:
            loss = loss + weight * entropy_term(latents, book, kept.mean, 0.05).mean()
            kept.update(probability_sums(latents, book, 0.05), samples=4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    codes = torch.cdist(torch.randn(4096, 2, generator=generator), book).argmin(1)
    used = codes.bincount(minlength=64) / 4096
    return math.exp(-torch.special.xlogy(used, used).sum().item())


def test_pieces_are_all_that_is_in_memory(monkeypatch):
    """Nothing of more than `at_once` numbers is computed: 64 latents by 4,096 codes are not."""
    latents, book = torch.randn(1, 2, 1, 8, 8, requires_grad=True), torch.randn(4096, 2)
    sizes = Sizes()

    with sizes:
        mean = probability_sums(latents, book, 1.0, at_once=8192)
        entropy_term(latents, book, mean, 1.0, at_once=8192).sum().backward()

    assert max(sizes.seen) == 8192


class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if isinstance(result, Tensor):
            self.seen.append(result.numel())
        return result
