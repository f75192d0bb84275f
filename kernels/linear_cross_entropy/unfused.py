"""Loss and log-probabilities in plain torch and its autograd, all logits at once.

The fused implementations are checked against it.
"""

from typing import Any

import torch
from emu3_kernels.exchange import Exchange, NoExchange
from emu3_kernels.linear_cross_entropy.inputs import check_head, check_tokens, kept_and_valid
from emu3_kernels.linear_cross_entropy.results import TokenLogProbabilities


def unfused_linear_cross_entropy(
    hidden_nh: torch.Tensor,
    weight_vh: torch.Tensor,
    labels_n: torch.Tensor,
    weights_n: torch.Tensor,
    *,
    vocab_size: int,
    z_loss: float,
    exchange: Exchange,
) -> tuple[torch.Tensor, ...]:
    """The loss, and for each token its largest logit, log-sum-exp and target logit."""
    logits_nv = _logits(hidden_nh, weight_vh, vocab_size, exchange)
    first_row = exchange.rank * weight_vh.shape[0]
    maximum_n, lse_n, target_n = _softmax_parts(logits_nv, labels_n - first_row, exchange)
    loss = (weights_n * (lse_n - target_n + z_loss * lse_n.square())).sum()
    return loss, maximum_n, lse_n.detach(), target_n.detach()


def unfused_log_probabilities(
    hidden_nh: torch.Tensor,
    weight_vh: torch.Tensor,
    labels_n: torch.Tensor,
    *,
    vocab_size: int,
    exchange: Exchange | None = None,
) -> TokenLogProbabilities:
    """Each label's log-probability under softmax(hidden @ weight.T), all logits at once.

    The results are equal on all ranks that share the vocabulary. All of them must compute the same
    loss from the log-probabilities: gradients of hidden states are summed over the ranks.

    Args:
        hidden_nh: [n, h], the same on all ranks of the exchange, or this rank's part where the
            exchange divides tokens.
        weight_vh: this rank's rows of the head, [v, h], see `linear_cross_entropy`.
        labels_n: int64 [n], all tokens. Of IGNORE log-probability and entropy are 0, without
            gradient, and the token is not correct; any other id outside the vocabulary gives NaN.
        vocab_size: ids of the whole vocabulary, without padding.
        exchange: the ranks that share the vocabulary; none by default.

    Returns:
        [n] each; log-probability and entropy in fp32 or the inputs' wider type.

    Raises:
        ValueError: shapes or types do not fit together.
    """
    exchange = exchange or NoExchange()
    check_tokens(hidden_nh, exchange, labels_n)
    check_head(hidden_nh, weight_vh, vocab_size, exchange)
    kept_n, valid_n = kept_and_valid(labels_n, vocab_size)
    logits_nv = _logits(hidden_nh, weight_vh, vocab_size, exchange)
    first_row = exchange.rank * weight_vh.shape[0]
    maximum_n, lse_n, target_n = _softmax_parts(logits_nv, labels_n - first_row, exchange)
    log_prob_n = (target_n - lse_n).where(kept_n, 0.0).where(valid_n, torch.nan)
    correct_n = kept_n & valid_n & (target_n.detach() >= maximum_n)
    entropy_n = _entropy(logits_nv, lse_n, exchange).where(kept_n, 0.0)
    return TokenLogProbabilities(log_prob_n, correct_n, entropy_n)


def _logits(
    hidden_nh: torch.Tensor, weight_vh: torch.Tensor, vocab_size: int, exchange: Exchange
) -> torch.Tensor:
    """Of all tokens over this rank's columns without padding, at least in fp32."""
    first_row = exchange.rank * weight_vh.shape[0]
    num_rows = min(max(vocab_size - first_row, 0), weight_vh.shape[0])
    logits_nv = _GatherTokens.apply(hidden_nh, exchange) @ weight_vh[:num_rows].T
    return logits_nv.to(torch.promote_types(logits_nv.dtype, torch.float32))


def _softmax_parts(
    logits_nv: torch.Tensor, local_n: torch.Tensor, exchange: Exchange
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Largest logit, log-sum-exp and target logit of each token over all ranks' columns.

    The target logit of a label outside the vocabulary is 0.

    Args:
        local_n: labels, counted from this rank's first column.
    """
    num_rows = logits_nv.shape[1]
    if num_rows:
        here_n = (local_n >= 0) & (local_n < num_rows)
        picked_n = logits_nv.gather(1, local_n.clamp(0, num_rows - 1)[:, None])[:, 0]
        target_n = torch.where(here_n, picked_n, 0.0)
        largest_n = logits_nv.detach().amax(1)
    else:  # this rank holds nothing but padding
        target_n = logits_nv.sum(1)
        largest_n = logits_nv.new_full((len(local_n),), -torch.inf)
    maximum_n = exchange.all_gather(largest_n)().amax(0)
    sum_exp_n = _Sum.apply((logits_nv - maximum_n[:, None]).exp().sum(1), exchange)
    return maximum_n, sum_exp_n.log() + maximum_n, _Sum.apply(target_n, exchange)


@torch.no_grad()
def _entropy(logits_nv: torch.Tensor, lse_n: torch.Tensor, exchange: Exchange) -> torch.Tensor:
    """Of the distribution over all ranks' columns, in nats."""
    log_prob_nv = logits_nv - lse_n[:, None]
    return exchange.all_gather(-(log_prob_nv.exp() * log_prob_nv).sum(1))().sum(0)


class _GatherTokens(torch.autograd.Function):
    """All tokens' hidden states; their gradient is summed over the ranks, at least in fp32."""

    @staticmethod
    def forward(ctx: Any, hidden_nh: torch.Tensor, exchange: Exchange) -> torch.Tensor:
        ctx.exchange = exchange
        return exchange.gather_tokens(hidden_nh)

    @staticmethod
    def backward(ctx: Any, gradient_nh: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        wide = torch.promote_types(gradient_nh.dtype, torch.float32)
        return ctx.exchange.sum_tokens(gradient_nh.to(wide)).to(gradient_nh.dtype), None


class _Sum(torch.autograd.Function):
    """Sum over the ranks. All of them compute the same loss from it, so its gradient is theirs."""

    @staticmethod
    def forward(ctx: Any, share: torch.Tensor, exchange: Exchange) -> torch.Tensor:
        return exchange.all_gather(share)().sum(0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient, None
