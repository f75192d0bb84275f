"""Entropy loss of the codes, in pieces over the codebook.

Each latent chooses codes with probabilities p = softmax(-distance² / temperature). The loss is the
mean entropy of p less the entropy of their mean m: it falls as each latent is sure of its code and
all codes are used alike, down to -log(number of codes).

For m as a constant, the mean of H(p) + sum of p log m has the value and the gradient of the whole
loss, since m's own gradient is that of sum p, which is always 1. So `entropy_term` gives one value
for each sample, and how samples are grouped changes nothing; but it needs m first.
`MeanProbabilities` keeps a running mean over the steps before, moved by `probability_sums` over all
ranks: no second pass over the samples, and no batch too small to say how often each of many codes
is used.

Latents times codes are never in memory at once (4,096 x 32,768 are 512 MiB); the backward pass
computes the pieces again.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from emu3_megatron.tokenizer_training.losses.terms import at_least_fp32

_AT_ONCE = 2**24  # probabilities: 64 MiB of fp32


@torch.no_grad()
def probability_sums(
    latents_bcfhw: Tensor, book_kc: Tensor, temperature: float, at_once: int = _AT_ONCE
) -> Tensor:
    """The sum over samples of each sample's mean probability of every code: [k], fp64.

    Args:
        temperature: squared distance that makes a code e times less likely.
        at_once: probabilities in memory at a time.
    """
    latents_nc, book_kc = _rows(latents_bcfhw), at_least_fp32(book_kc)
    log_total_n = torch.full_like(latents_nc[:, 0], -torch.inf)
    for _, logits_nk in _pieces(latents_nc, book_kc, temperature, at_once):
        log_total_n = torch.logaddexp(log_total_n, logits_nk.logsumexp(1))
    sums = [
        (logits_nk - log_total_n[:, None]).exp().sum(0, dtype=torch.float64)
        for _, logits_nk in _pieces(latents_nc, book_kc, temperature, at_once)
    ]
    return torch.cat(sums) * (len(latents_bcfhw) / len(latents_nc))


def entropy_term(
    latents_bcfhw: Tensor,
    book_kc: Tensor,
    mean_k: Tensor,
    temperature: float,
    at_once: int = _AT_ONCE,
) -> Tensor:
    """The loss of each sample [b], with gradients to latents and codes.

    Args:
        mean_k: the mean probability of each code over samples.
        temperature: as in `probability_sums`.
        at_once: probabilities in memory at a time.
    """
    with torch.autocast(latents_bcfhw.device.type, enabled=False):
        latents_nc, book_kc = _rows(latents_bcfhw), at_least_fp32(book_kc)
        log_mean_k = mean_k.clamp_min(torch.finfo(torch.float32).tiny).log().to(latents_nc)
        values_n = _Entropy.apply(latents_nc, book_kc, log_mean_k, temperature, at_once)
        return values_n.view(len(latents_bcfhw), -1).mean(1)


class MeanProbabilities(nn.Module):
    """The running mean probability of each code over samples; a checkpoint holds its buffers."""

    mean: Tensor  # [k]
    updates: Tensor

    def __init__(self, codes: int, decay: float = 0.9):
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.full((codes,), 1 / codes, dtype=torch.float64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, sums_k: Tensor, samples: float | Tensor) -> None:
        """Move the mean by one step.

        Args:
            sums_k: `probability_sums` of the step, added up over all groups and ranks.
            samples: the number of their samples, at least 1.
        """
        kept = torch.where(self.updates > 0, self.decay, 0.0).to(sums_k)  # the first counts whole
        self.mean.copy_(kept * self.mean + (1 - kept) * sums_k / samples)
        self.updates += 1


def _rows(latents_bcfhw: Tensor) -> Tensor:
    return at_least_fp32(latents_bcfhw.movedim(1, -1).flatten(0, -2))


def _pieces(
    latents_nc: Tensor, book_kc: Tensor, temperature: float, at_once: int
) -> Iterator[tuple[slice, Tensor]]:
    """Of the codes and their logits, -distance² / temperature: near 0 where it matters."""
    codes = max(1, at_once // len(latents_nc))
    half_squared_n1 = latents_nc.square().sum(1, keepdim=True) / 2
    for first in range(0, len(book_kc), codes):
        piece = slice(first, first + codes)
        half_squared_k = book_kc[piece].square().sum(1) / 2
        logits_nk = torch.addmm(half_squared_k, latents_nc, book_kc[piece].T, beta=-1)
        yield piece, logits_nk.sub_(half_squared_n1).mul_(2 / temperature)


class _Entropy(torch.autograd.Function):
    """Of each latent H(p) + Σ p log m = log Σ exp(s) + Σ p a, with logits s and a = log m - s.

    Its derivative by s is p (a - Σ p a).
    """

    @staticmethod
    def forward(
        ctx: Any,
        latents_nc: Tensor,
        book_kc: Tensor,
        log_mean_k: Tensor,
        temperature: float,
        at_once: int,
    ) -> Tensor:
        largest_n = torch.full_like(latents_nc[:, 0], -torch.inf)
        total_n, weighted_n = torch.zeros_like(largest_n), torch.zeros_like(largest_n)
        for piece, logits_nk in _pieces(latents_nc, book_kc, temperature, at_once):
            before_n, largest_n = largest_n, torch.maximum(largest_n, logits_nk.amax(1))
            weights_nk = (logits_nk - largest_n[:, None]).exp_()
            kept_n = (before_n - largest_n).exp()
            total_n = total_n * kept_n + weights_nk.sum(1)
            weights_nk *= log_mean_k[piece] - logits_nk
            weighted_n = weighted_n * kept_n + weights_nk.sum(1)
        log_total_n, mean_n = largest_n + total_n.log(), weighted_n / total_n
        ctx.save_for_backward(latents_nc, book_kc, log_mean_k, log_total_n, mean_n)
        ctx.settings = temperature, at_once
        return log_total_n + mean_n

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_n,) = gradients
        latents_nc, book_kc, log_mean_k, log_total_n, mean_n = ctx.saved_tensors
        temperature, at_once = ctx.settings
        of_latents_nc, of_book_kc = torch.zeros_like(latents_nc), torch.zeros_like(book_kc)
        for piece, logits_nk in _pieces(latents_nc, book_kc, temperature, at_once):
            by_logits_nk = (logits_nk - log_total_n[:, None]).exp_()
            by_logits_nk *= log_mean_k[piece] - logits_nk - mean_n[:, None]
            by_logits_nk *= gradient_n[:, None] * (2 / temperature)
            # without -latents * its sum over codes, which is 0
            of_latents_nc += by_logits_nk @ book_kc[piece]
            of_book_kc[piece] = by_logits_nk.T @ latents_nc
            of_book_kc[piece] -= by_logits_nk.sum(0)[:, None] * book_kc[piece]
        return of_latents_nc, of_book_kc, None, None, None
