"""The row passes of csrc/, which read each row once where a rank holds the whole vocabulary."""

import torch
from emu3_kernels import cuda
from emu3_kernels.linear_cross_entropy.rows import Rows


def statistics(logits_nv: torch.Tensor, labels_n: torch.Tensor) -> torch.Tensor:
    """See `Rows`."""
    statistics_3n = logits_nv.new_empty(3, logits_nv.shape[0], dtype=torch.float32)
    cuda.cross_entropy_statistics(logits_nv, labels_n, *statistics_3n)
    return statistics_3n


def statistics_with_entropy(logits_nv: torch.Tensor, labels_n: torch.Tensor) -> torch.Tensor:
    """See `Rows`. Triton's: csrc/ has no pass with entropy."""
    from emu3_kernels.linear_cross_entropy import triton_rows

    return triton_rows.statistics_with_entropy(logits_nv, labels_n)


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
    assert out_nv.data_ptr() == logits_nv.data_ptr()
    assert out_nv.dtype == torch.bfloat16
    cuda.cross_entropy_gradient(logits_nv, labels_n, weights_n, lse_n, z_loss=z_loss)


def whole(
    logits_nv: torch.Tensor,
    labels_n: torch.Tensor,
    weights_n: torch.Tensor,
    z_loss: float,
    out_nv: torch.Tensor,
) -> torch.Tensor:
    """See `Rows`."""
    assert out_nv.data_ptr() == logits_nv.data_ptr()
    assert out_nv.dtype == torch.bfloat16
    results_3n = logits_nv.new_empty(3, logits_nv.shape[0], dtype=torch.float32)
    cuda.cross_entropy_rows(logits_nv, labels_n, weights_n, *results_3n, z_loss=z_loss)
    return results_3n


ROWS = Rows(statistics, statistics_with_entropy, gradient, whole)
