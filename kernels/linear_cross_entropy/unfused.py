"""Loss and log-probabilities in plain torch and its autograd, all logits at once.

The fused implementations are checked against it. `kept_k` says which tokens have a label; None
that all have.
"""

from typing import Any

import torch
from emu3_kernels.exchange import Exchange
from emu3_kernels.linear_cross_entropy.inputs import take


def unfused_linear_cross_entropy(
    hidden_nh: torch.Tensor,
    weight_vh: torch.Tensor,
    labels_k: torch.Tensor,
    weights_k: torch.Tensor,
    kept_k: torch.Tensor | None,
    *,
    vocab_size: int,
    z_loss: float,
    exchange: Exchange,
) -> tuple[torch.Tensor, ...]:
    """The loss, and of each token that has a label largest logit, log-sum-exp and target logit."""
    logits_kv = _logits(hidden_nh, weight_vh, kept_k, vocab_size, exchange)
    first_row = exchange.rank * weight_vh.shape[0]
    maximum_k, lse_k, target_k = _softmax_parts(logits_kv, labels_k - first_row, exchange)
    loss = (weights_k * (lse_k - target_k + z_loss * lse_k.square())).sum()
    return loss, maximum_k, lse_k.detach(), target_k.detach()


def unfused_log_probabilities(
    hidden_nh: torch.Tensor,
    weight_vh: torch.Tensor,
    labels_k: torch.Tensor,
    kept_k: torch.Tensor | None,
    *,
    vocab_size: int,
    exchange: Exchange,
) -> tuple[torch.Tensor, ...]:
    """Of each token that has a label: its log-probability, whether it is correct, the entropy."""
    logits_kv = _logits(hidden_nh, weight_vh, kept_k, vocab_size, exchange)
    first_row = exchange.rank * weight_vh.shape[0]
    maximum_k, lse_k, target_k = _softmax_parts(logits_kv, labels_k - first_row, exchange)
    entropy_k = _entropy(logits_kv, lse_k, exchange)
    return target_k - lse_k, target_k.detach() >= maximum_k, entropy_k


def _logits(
    hidden_nh: torch.Tensor,
    weight_vh: torch.Tensor,
    kept_k: torch.Tensor | None,
    vocab_size: int,
    exchange: Exchange,
) -> torch.Tensor:
    """Over this rank's columns without padding, at least in fp32."""
    first_row = exchange.rank * weight_vh.shape[0]
    num_rows = min(max(vocab_size - first_row, 0), weight_vh.shape[0])
    hidden_kh = take(_GatherTokens.apply(hidden_nh, exchange), kept_k)
    logits_kv = hidden_kh @ weight_vh[:num_rows].T
    return logits_kv.to(torch.promote_types(logits_kv.dtype, torch.float32))


def _softmax_parts(
    logits_kv: torch.Tensor, local_k: torch.Tensor, exchange: Exchange
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Largest logit, log-sum-exp and target logit of each token over all ranks' columns.

    The target logit of a label outside the vocabulary is 0.

    Args:
        local_k: labels, counted from this rank's first column.
    """
    num_rows = logits_kv.shape[1]
    if num_rows:
        here_k = (local_k >= 0) & (local_k < num_rows)
        picked_k = logits_kv.gather(1, local_k.clamp(0, num_rows - 1)[:, None])[:, 0]
        target_k = torch.where(here_k, picked_k, 0.0)
        largest_k = logits_kv.detach().amax(1)
    else:  # this rank holds nothing but padding
        target_k = logits_kv.sum(1)
        largest_k = logits_kv.new_full((len(local_k),), -torch.inf)
    maximum_k = exchange.all_gather(largest_k)().amax(0)
    sum_exp_k = _Sum.apply((logits_kv - maximum_k[:, None]).exp().sum(1), exchange)
    return maximum_k, sum_exp_k.log() + maximum_k, _Sum.apply(target_k, exchange)


@torch.no_grad()
def _entropy(logits_kv: torch.Tensor, lse_k: torch.Tensor, exchange: Exchange) -> torch.Tensor:
    """Of the distribution over all ranks' columns, in nats."""
    log_prob_kv = logits_kv - lse_k[:, None]
    return exchange.all_gather(-(log_prob_kv.exp() * log_prob_kv).sum(1))().sum(0)


class _GatherTokens(torch.autograd.Function):
    """All tokens' hidden states; their gradient is summed over the ranks, at least in fp32."""

    @staticmethod
    def forward(ctx: Any, hidden_nh: torch.Tensor, exchange: Exchange) -> torch.Tensor:
        ctx.exchange = exchange
        return exchange.gather_tokens(hidden_nh)()

    @staticmethod
    def backward(ctx: Any, gradient_nh: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        wide = torch.promote_types(gradient_nh.dtype, torch.float32)
        return ctx.exchange.sum_tokens(gradient_nh.to(wide))().to(gradient_nh.dtype), None


class _Sum(torch.autograd.Function):
    """Sum over the ranks. All of them compute the same loss from it, so its gradient is theirs."""

    @staticmethod
    def forward(ctx: Any, share: torch.Tensor, exchange: Exchange) -> torch.Tensor:
        return exchange.all_gather(share)().sum(0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient, None
