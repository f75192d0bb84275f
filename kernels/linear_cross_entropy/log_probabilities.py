"""Each label's log-probability, differentiable, a chunk of tokens at a time.

Forward keeps a token's log-sum-exp and no logits. Backward computes each chunk's logits again and
turns them into their gradient, which is that of the loss with weights of either sign: minus what
comes. Four products in place of the loss's three, and no gradient waits between the two.
"""

from typing import Any

import torch
from emu3_kernels.exchange import Exchange, NoExchange
from emu3_kernels.linear_cross_entropy.backends import Backend, choose
from emu3_kernels.linear_cross_entropy.chunks import Chunks, Gradients, Task, rounded
from emu3_kernels.linear_cross_entropy.inputs import (
    check_head,
    check_settings,
    check_tokens,
    in_vocabulary,
    kept_tokens,
    take,
)
from emu3_kernels.linear_cross_entropy.results import TokenLogProbabilities
from emu3_kernels.linear_cross_entropy.unfused import unfused_log_probabilities
from torch.autograd.function import once_differentiable


def token_log_probabilities(
    hidden_nh: torch.Tensor,
    weight_vh: torch.Tensor,
    labels_n: torch.Tensor,
    *,
    vocab_size: int,
    exchange: Exchange | None = None,
    backend: Backend = "auto",
    main_grad_vh: torch.Tensor | None = None,
    chunk_size: int | None = None,
    kept_k: torch.Tensor | None = None,
) -> TokenLogProbabilities:
    """Each label's log-probability under softmax(hidden @ weight.T), and the entropy.

    All ranks that share the vocabulary must compute the same loss from the log-probabilities:
    gradients of hidden states are summed over the ranks.

    Args:
        hidden_nh: see `linear_cross_entropy`, as for what follows.
        labels_n: of IGNORE log-probability and entropy are 0, without gradient, and the token is
            not correct; the log-probability of any other id outside the vocabulary is NaN.
        main_grad_vh: backward adds the weight's gradient to this, usually fp32, and returns none.

    Returns:
        [n] each; log-probability and entropy in fp32 or the inputs' wider type.

    Raises:
        ValueError: shapes or types do not fit together, or the backend cannot take them.
    """
    exchange = exchange or NoExchange()
    check_tokens(hidden_nh, exchange, labels_n)
    check_head(hidden_nh, weight_vh, vocab_size, exchange)
    check_settings(weight_vh, main_grad_vh, chunk_size, backend)
    kept_k = kept_tokens(labels_n, kept_k)
    labels_k = take(labels_n, kept_k)
    if backend == "unfused":
        log_prob_k, correct_k, entropy_k = unfused_log_probabilities(
            hidden_nh, weight_vh, labels_k, kept_k, vocab_size=vocab_size, exchange=exchange
        )
    else:
        rows = choose(backend, hidden_nh, weight_vh, exchange.size)
        task = Task(labels_k, kept_k, vocab_size, exchange, rows, chunk_size)
        log_prob_k, correct_k, entropy_k = _LogProbabilities.apply(
            hidden_nh, weight_vh, task, main_grad_vh
        )
    valid_k = in_vocabulary(labels_k, vocab_size)
    values = log_prob_k.where(valid_k, torch.nan), correct_k & valid_k, entropy_k
    return TokenLogProbabilities(*(_spread(value_k, labels_n, kept_k) for value_k in values))


def _spread(
    values_k: torch.Tensor, labels_n: torch.Tensor, kept_k: torch.Tensor | None
) -> torch.Tensor:
    """Values of all tokens, from those of the tokens that have a label; 0 elsewhere."""
    if kept_k is None:
        return values_k
    return values_k.new_zeros(len(labels_n)).index_copy(0, kept_k, values_k)


class _LogProbabilities(torch.autograd.Function):
    """Of each token that has a label: log-probability, whether it is correct, entropy."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_nh: torch.Tensor,
        weight_vh: torch.Tensor,
        task: Task,
        main_grad_vh: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...]:
        chunks = Chunks(hidden_nh, weight_vh, task, Gradients())
        maximum_k, lse_k, target_k, entropy_k = chunks.statistics()
        correct_k = target_k >= maximum_k
        ctx.save_for_backward(hidden_nh, weight_vh, lse_k)
        ctx.task, ctx.main_grad_vh = task, main_grad_vh
        ctx.mark_non_differentiable(correct_k, entropy_k)
        return target_k - lse_k, correct_k, entropy_k

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_k: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        hidden_nh, weight_vh, lse_k = ctx.saved_tensors
        add_to_vh = main_grad_vh = ctx.main_grad_vh
        if main_grad_vh is not None and main_grad_vh.dtype != lse_k.dtype:
            add_to_vh = None  # products are added up in the type of the sums, and rounded once
        wanted = Gradients(*ctx.needs_input_grad[:2])
        chunks = Chunks(hidden_nh, weight_vh, ctx.task, wanted, add_to_vh)
        chunks.backward(-gradient_k, lse_k)
        by_hidden_nh, by_weight_vh = chunks.by_hidden_nh(), chunks.by_weight_vh
        if by_hidden_nh is not None:
            by_hidden_nh = by_hidden_nh.to(hidden_nh.dtype)
        if by_weight_vh is not None and main_grad_vh is not None:
            if add_to_vh is None:
                main_grad_vh[: len(by_weight_vh)].add_(by_weight_vh)
            by_weight_vh = None
        elif by_weight_vh is not None:
            by_weight_vh = rounded(by_weight_vh, 1.0, weight_vh.dtype, weight_vh.shape)
        return by_hidden_nh, by_weight_vh, None, None
