"""Loss and both gradients in one forward, a chunk of tokens at a time.

For each chunk: logits = hidden @ weight.T, the first row pass, an exchange among the ranks, the
second row pass that turns logits into their gradient in place, then the products that give the
gradients of hidden states and weight. Backward only scales those.
"""

from typing import Any

import torch
from emu3_kernels.linear_cross_entropy.chunks import Chunks, Gradients, Task, rounded
from torch.autograd.function import once_differentiable


def fused_linear_cross_entropy(
    hidden_nh: torch.Tensor,
    weight_vh: torch.Tensor,
    weights_k: torch.Tensor,
    task: Task,
    *,
    z_loss: float,
    main_grad_vh: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """The loss, and of each token that has a label largest logit, log-sum-exp and target logit."""
    recording = torch.is_grad_enabled()
    wanted = Gradients(recording and hidden_nh.requires_grad, recording and weight_vh.requires_grad)
    return _Fused.apply(hidden_nh, weight_vh, weights_k, task, z_loss, main_grad_vh, wanted)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_nh: torch.Tensor,
        weight_vh: torch.Tensor,
        weights_k: torch.Tensor,
        task: Task,
        z_loss: float,
        main_grad_vh: torch.Tensor | None,
        wanted: Gradients,
    ) -> tuple[torch.Tensor, ...]:
        chunks = Chunks(task.exchange.gather_tokens(hidden_nh), weight_vh, task, wanted)
        maximum_k, lse_k, target_k = chunks.loss(weights_k, z_loss)
        nll_k = lse_k - target_k
        loss = (weights_k * (nll_k + z_loss * lse_k.square())).sum()
        by_hidden_nh = chunks.by_hidden_nh
        if by_hidden_nh is not None:
            by_hidden_nh = task.exchange.sum_tokens(by_hidden_nh)
        ctx.save_for_backward(by_hidden_nh, chunks.by_weight_vh)
        ctx.dtype, ctx.weight_shape = hidden_nh.dtype, weight_vh.shape
        ctx.main_grad_vh = main_grad_vh
        ctx.mark_non_differentiable(maximum_k, lse_k, target_k)
        return loss, maximum_k, lse_k, target_k

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        by_hidden_nh, by_weight_vh = ctx.saved_tensors
        if by_hidden_nh is not None:
            by_hidden_nh = rounded(by_hidden_nh, scale, ctx.dtype, by_hidden_nh.shape)
        if by_weight_vh is not None and ctx.main_grad_vh is not None:
            ctx.main_grad_vh[: len(by_weight_vh)].addcmul_(by_weight_vh, scale)
            by_weight_vh = None
        elif by_weight_vh is not None:
            by_weight_vh = rounded(by_weight_vh, scale, ctx.dtype, ctx.weight_shape)
        return by_hidden_nh, by_weight_vh, None, None, None, None, None
