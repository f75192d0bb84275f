"""Plain torch and its autograd, all logits at once: what the fused paths are checked against."""

from typing import Any

import torch
from emu3_kernels.exchange import Exchange


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
    first_row = exchange.rank * weight_vh.shape[0]
    num_rows = min(max(vocab_size - first_row, 0), weight_vh.shape[0])
    logits_nv = _Enter.apply(hidden_nh, exchange) @ weight_vh[:num_rows].T
    logits_nv = logits_nv.to(torch.promote_types(logits_nv.dtype, torch.float32))

    maximum_n, lse_n, target_n = _softmax_parts(logits_nv, labels_n - first_row, exchange)
    loss = (weights_n * (lse_n - target_n + z_loss * lse_n.square())).sum()
    return loss, maximum_n, lse_n.detach(), target_n.detach()


def _softmax_parts(
    logits_nv: torch.Tensor, local_n: torch.Tensor, exchange: Exchange
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Largest logit, log-sum-exp and target logit of each row over all ranks' columns.

    `local_n` counts labels from this rank's first column; a label elsewhere contributes nothing.
    """
    tokens, columns = logits_nv.shape
    if columns:
        here_n = (local_n >= 0) & (local_n < columns)
        picked_n = logits_nv.gather(1, local_n.clamp(0, columns - 1)[:, None])[:, 0]
        target_n = torch.where(here_n, picked_n, 0.0)
        largest_n = logits_nv.detach().amax(1)
    else:  # this rank holds nothing but padding
        target_n = logits_nv.sum(1)
        largest_n = logits_nv.new_full((tokens,), -torch.inf)
    maximum_n = exchange.all_gather(largest_n)().amax(0)
    sum_exp_n = _Sum.apply((logits_nv - maximum_n[:, None]).exp().sum(1), exchange)
    return maximum_n, sum_exp_n.log() + maximum_n, _Sum.apply(target_n, exchange)


class _Enter(torch.autograd.Function):
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
    """Every rank goes on to compute the same loss from the sum, so its gradient passes as it is."""

    @staticmethod
    def forward(ctx: Any, share: torch.Tensor, exchange: Exchange) -> torch.Tensor:
        return exchange.all_gather(share)().sum(0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient, None
