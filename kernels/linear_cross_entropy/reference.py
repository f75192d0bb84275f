"""Plain torch: every dtype, every device, autograd."""

import torch
from emu3_kernels.exchange import Exchange


def reference_linear_cross_entropy(
    hidden_nh: torch.Tensor,
    weight_vh: torch.Tensor,
    labels_n: torch.Tensor,
    weights_n: torch.Tensor,
    classes_n: torch.Tensor,
    *,
    vocab_size: int,
    num_classes: int,
    z_loss: float,
    exchange: Exchange,
    ignore: int,
) -> tuple[torch.Tensor, ...]:
    """loss, weight, nll, count, correct; see `linear_cross_entropy`."""
    first_row = exchange.rank * weight_vh.shape[0]
    num_rows = min(max(vocab_size - first_row, 0), weight_vh.shape[0])
    logits_nv = hidden_nh @ weight_vh[:num_rows].T
    logits_nv = logits_nv.to(torch.promote_types(logits_nv.dtype, torch.float32))

    target_n, maximum_n, lse_n = _softmax_parts(logits_nv, labels_n - first_row, exchange)
    kept_n = labels_n != ignore
    nll_n = torch.where(kept_n, lse_n - target_n, 0.0)
    weights_n = torch.where(kept_n, weights_n.to(nll_n.dtype), 0.0)
    loss = (weights_n * (nll_n + z_loss * lse_n.square())).sum()

    class_cn = torch.nn.functional.one_hot(classes_n, num_classes).T.to(nll_n.dtype) * kept_n
    correct_n = (target_n >= maximum_n).to(nll_n.dtype)
    nll_c = class_cn @ nll_n.detach()
    return loss, weights_n.sum(), nll_c, class_cn.sum(1), class_cn @ correct_n


def _softmax_parts(
    logits_nv: torch.Tensor, local_n: torch.Tensor, exchange: Exchange
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Target logit, largest logit and log-sum-exp of each row over all ranks' columns.

    `local_n` counts labels from this rank's first column; a label elsewhere contributes nothing.
    """
    tokens, columns = logits_nv.shape
    if columns:
        here_n = (local_n >= 0) & (local_n < columns)
        picked_n = logits_nv.gather(1, local_n.clamp(0, columns - 1)[:, None])[:, 0]
        target_n = torch.where(here_n, picked_n, 0.0)
        largest_n = logits_nv.detach().amax(1) if tokens else logits_nv.new_empty(0)
    else:  # this rank holds nothing but padding
        target_n = logits_nv.sum(1)
        largest_n = logits_nv.new_full((tokens,), -torch.inf)
    maximum_n = exchange.max(largest_n)
    sum_exp_n = exchange.sum((logits_nv - maximum_n[:, None]).exp().sum(1))
    return exchange.sum(target_n), maximum_n, sum_exp_n.log() + maximum_n
