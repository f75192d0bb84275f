"""Merges, adds and gathers around attention kernels.

The kernels of csrc where they are built and the device runs them, plain torch everywhere else.
"""

import torch
from emu3_kernels import cuda


def merge(
    out_thd: torch.Tensor,
    lse_ht: torch.Tensor,
    new_out_thd: torch.Tensor,
    new_lse_ht: torch.Tensor,
) -> None:
    """Merge attention over further keys into out and lse, in place.

    out = (e^lse out + e^new_lse new_out) / (e^lse + e^new_lse); lse is -inf where nothing was
    visible yet, and out 0.

    Args:
        out_thd: [t, h, d], fp32 or wider.
        lse_ht: [h, t], natural log, fp32 or wider; it may be some queries of a longer one.
        new_out_thd: [t, h, d], any floating type.
        new_lse_ht: [h, t].
    """
    if _sums(out_thd, new_out_thd) and out_thd.shape[2] % 4 == 0 and lse_ht.stride(1) == 1:
        cuda.merge_attention(out_thd, lse_ht, new_out_thd.contiguous(), new_lse_ht.contiguous())
        return
    # Where both are -inf, nothing is visible: the difference is NaN, and out stays as it is.
    share_ht = torch.sigmoid(new_lse_ht - lse_ht).nan_to_num_(0.0)
    out_thd.lerp_(new_out_thd.to(out_thd.dtype), share_ht.T.unsqueeze(-1).to(out_thd.dtype))
    torch.logaddexp(lse_ht, new_lse_ht.to(lse_ht.dtype), out=lse_ht)


def accumulate(total: torch.Tensor, part: torch.Tensor) -> None:
    """total += part, of one shape; total is fp32 or wider."""
    if _sums(total, part):
        cuda.accumulate(total, part.contiguous())
    else:
        total += part


def gather(source: torch.Tensor, rows_t: torch.Tensor, destination: torch.Tensor) -> None:
    """destination = source[rows_t], without a copy in between.

    Args:
        source: [s, ...], 16 bits a value or more.
        rows_t: int64 [t], each in [0, s).
        destination: [t, ...], contiguous.
    """
    if _on_gpu(source) and source.is_contiguous():
        cuda.permute_tokens(source, rows_t, destination)
    else:
        torch.index_select(source, 0, rows_t, out=destination)


def _sums(total: torch.Tensor, part: torch.Tensor) -> bool:
    """Whether csrc's kernels add such tensors: fp32 totals at 16-byte borders, no fp16."""
    return (
        _on_gpu(total)
        and total.dtype == torch.float32
        and part.dtype in (torch.float32, torch.bfloat16)
        and total.is_contiguous()
        and total.data_ptr() % 16 == 0
    )


def _on_gpu(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda and cuda.available()
