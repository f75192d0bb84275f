"""Loss and both gradients in one forward, a chunk of tokens at a time.

For each chunk: logits = hidden @ weight.T, the first row pass, an exchange among the ranks, the
second row pass that turns logits into their gradient in place, then the products that give the
gradients of hidden states and weight. Backward only scales those.

Where the caller knows what backward will scale them by, the weights of the tokens are multiplied by
it beforehand. The weight's gradient is then added to the main gradient chunk by chunk, without a
tensor of its size and without a pass over it, and the gradient by hidden states is rounded at once.
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
    known_scale: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """The loss, and of each token that has a label largest logit, log-sum-exp and target logit."""
    recording = torch.is_grad_enabled()
    wanted = Gradients(recording and hidden_nh.requires_grad, recording and weight_vh.requires_grad)
    inputs = hidden_nh, weight_vh, weights_k, task, z_loss, main_grad_vh
    if known_scale is not None and _adds_at_once(hidden_nh, main_grad_vh):
        return _AddedAtOnce.apply(*inputs, known_scale, wanted)
    return _Fused.apply(*inputs, wanted)


def _adds_at_once(hidden_nh: torch.Tensor, main_grad_vh: torch.Tensor | None) -> bool:
    """Products add to fp32 or wider. In fp16 gradients of a mean over many tokens would be 0."""
    wide = torch.promote_types(hidden_nh.dtype, torch.float32)
    fits = main_grad_vh is not None and main_grad_vh.dtype == wide
    return fits and hidden_nh.dtype != torch.float16


def _loss(weights_k: torch.Tensor, results_k: tuple[torch.Tensor, ...], z_loss: float) -> Any:
    _, lse_k, target_k = results_k
    return (weights_k * (lse_k - target_k + z_loss * lse_k.square())).sum()


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
        chunks = Chunks(hidden_nh, weight_vh, task, wanted)
        results_k = chunks.loss(weights_k, z_loss)
        ctx.save_for_backward(chunks.by_hidden_nh(), chunks.by_weight_vh)
        ctx.dtype, ctx.weight_shape = hidden_nh.dtype, weight_vh.shape
        ctx.main_grad_vh = main_grad_vh
        ctx.mark_non_differentiable(*results_k)
        return _loss(weights_k, results_k, z_loss), *results_k

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


class _AddedAtOnce(torch.autograd.Function):
    """The same where the scale is known: forward adds to the main gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_nh: torch.Tensor,
        weight_vh: torch.Tensor,
        weights_k: torch.Tensor,
        task: Task,
        z_loss: float,
        main_grad_vh: torch.Tensor,
        known_scale: torch.Tensor,
        wanted: Gradients,
    ) -> tuple[torch.Tensor, ...]:
        chunks = Chunks(hidden_nh, weight_vh, task, wanted, main_grad_vh)
        results_k = chunks.loss(weights_k * known_scale, z_loss)
        by_hidden_nh = chunks.by_hidden_nh()
        if by_hidden_nh is not None:
            by_hidden_nh = by_hidden_nh.to(hidden_nh.dtype)
        ctx.save_for_backward(by_hidden_nh, known_scale)
        ctx.mark_non_differentiable(*results_k)
        return _loss(weights_k, results_k, z_loss), *results_k

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        by_hidden_nh, known_scale = ctx.saved_tensors
        if by_hidden_nh is not None:
            # What was added cannot be taken back. A NaN that reaches every other gradient is seen,
            # and the host need not wait for the device to compare.
            as_said = torch.isclose(scale, known_scale.to(scale.dtype), rtol=1e-5, atol=0.0)
            by_hidden_nh = by_hidden_nh * as_said.to(by_hidden_nh.dtype).where(as_said, torch.nan)
        return by_hidden_nh, *[None] * 7
