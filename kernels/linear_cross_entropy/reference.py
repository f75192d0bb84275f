"""The row passes in plain torch: on every device, in fp32 and fp64; CPUs train with it."""

import torch
from emu3_kernels.linear_cross_entropy.rows import Rows

BLOCK_BYTES = 1 << 20  # rows at a time, so that a block's passes find it in the cache


def statistics(logits_nv: torch.Tensor, labels_n: torch.Tensor) -> torch.Tensor:
    """See `Rows`. Leaves exp(logit - largest here) behind, which saves the gradient its exp."""
    return _statistics(logits_nv, labels_n)


def statistics_with_entropy(logits_nv: torch.Tensor, labels_n: torch.Tensor) -> torch.Tensor:
    """See `Rows`."""
    moment_n = logits_nv.new_zeros(logits_nv.shape[0])
    statistics_3n = _statistics(logits_nv, labels_n, moment_n)
    return torch.cat([statistics_3n, moment_n[None]])


def _statistics(
    logits_nv: torch.Tensor, labels_n: torch.Tensor, moment_n: torch.Tensor | None = None
) -> torch.Tensor:
    """Exponentials in place of the logits; their sum, and that of exp(x) x if there is a place."""
    tokens, columns = logits_nv.shape
    statistics_3n = logits_nv.new_zeros(3, tokens)
    maximum_n, sum_exp_n, target_n = statistics_3n
    if not columns:
        maximum_n.fill_(-torch.inf)
        return statistics_3n
    here_n, column_n1 = _locate(labels_n, columns)
    target_n.copy_(torch.where(here_n, logits_nv.gather(1, column_n1)[:, 0], 0.0))
    for rows in _blocks(logits_nv):
        block_bv = logits_nv[rows]
        torch.amax(block_bv, 1, out=maximum_n[rows])
        block_bv.sub_(maximum_n[rows, None])
        below_bv = block_bv.clone() if moment_n is not None else None
        torch.sum(block_bv.exp_(), 1, out=sum_exp_n[rows])
        if moment_n is not None and below_bv is not None:
            torch.sum(below_bv.mul_(block_bv), 1, out=moment_n[rows])
    return statistics_3n


def gradient(
    logits_nv: torch.Tensor,
    labels_n: torch.Tensor,
    weights_n: torch.Tensor,
    statistics_3n: torch.Tensor | None,
    lse_n: torch.Tensor,
    z_loss: float,
    out_nv: torch.Tensor,
) -> None:
    """See `Rows`."""
    assert out_nv.dtype == logits_nv.dtype
    if not logits_nv.shape[1]:
        return
    factor_n = weights_n * (1 + 2 * z_loss * lse_n)
    if statistics_3n is None:
        for rows in _blocks(logits_nv):
            logits_nv[rows].sub_(lse_n[rows, None]).exp_().mul_(factor_n[rows, None])
    else:  # exp(logit - largest here) becomes the softmax over all columns everywhere
        logits_nv.mul_(((statistics_3n[0] - lse_n).exp() * factor_n)[:, None])
    here_n, column_n1 = _locate(labels_n, logits_nv.shape[1])
    logits_nv.scatter_add_(1, column_n1, -weights_n.where(here_n, 0.0)[:, None])


def _locate(labels_n: torch.Tensor, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which labels lie here, and a column for each, any for those elsewhere."""
    here_n = (labels_n >= 0) & (labels_n < columns)
    return here_n, labels_n.clamp(0, columns - 1)[:, None]


def _blocks(logits_nv: torch.Tensor) -> list[slice]:
    size = max(1, BLOCK_BYTES // (logits_nv.stride(0) * logits_nv.element_size()))
    if logits_nv.is_cuda:
        size = max(1, logits_nv.shape[0])
    return [slice(start, start + size) for start in range(0, logits_nv.shape[0], size)]


ROWS = Rows(statistics, statistics_with_entropy, gradient, at_least_fp32=True)
