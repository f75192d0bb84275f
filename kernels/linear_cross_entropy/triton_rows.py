"""The row passes in Triton: one program a row, fp32 inside, no atomics."""

from typing import Any

import torch
import triton
import triton.language as tl
from emu3_kernels.linear_cross_entropy.rows import Rows

BLOCK = 8192
WARPS = 8


@triton.jit
def _merge_block(logits, maximum, sum_exp):
    """Take a block of logits into the running maximum and the running sum of exponentials."""
    larger = tl.maximum(maximum, tl.max(logits))
    # While all logits are -inf their exponentials are 0; -inf less itself would be NaN.
    shift = tl.where(larger == float("-inf"), 0.0, larger)
    return larger, sum_exp * tl.exp(maximum - shift) + tl.sum(tl.exp(logits - shift))


@triton.jit
def statistics_kernel(
    logits_ptr, labels_ptr, statistics_ptr, columns, stride, tokens, BLOCK: tl.constexpr
):
    """[3, tokens]: largest logit, sum of exponentials, target logit of each row."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    lanes = tl.arange(0, BLOCK)
    maximum = tl.full((), float("-inf"), tl.float32)
    sum_exp = tl.full((), 0.0, tl.float32)
    # Only the last block is masked: a mask that may end anywhere would split every wide load.
    whole = columns // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        logits = tl.load(logits_ptr + start + lanes).to(tl.float32)
        maximum, sum_exp = _merge_block(logits, maximum, sum_exp)
    if whole < columns:
        inside = whole + lanes < columns
        logits = tl.load(logits_ptr + whole + lanes, mask=inside, other=float("-inf"))
        maximum, sum_exp = _merge_block(logits.to(tl.float32), maximum, sum_exp)
    label = tl.load(labels_ptr + row)
    here = (label >= 0) & (label < columns)
    target = tl.load(logits_ptr + tl.where(here, label, 0), mask=here, other=0.0).to(tl.float32)
    tl.store(statistics_ptr + row, maximum)
    tl.store(statistics_ptr + tokens + row, sum_exp)
    tl.store(statistics_ptr + 2 * tokens + row, target)


@triton.jit
def gradient_kernel(
    logits_ptr, labels_ptr, weights_ptr, lse_ptr, z_loss, columns, stride, BLOCK: tl.constexpr
):
    """Logits to weight x ((1 + 2 z_loss lse) softmax - onehot), in place."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    lanes = tl.arange(0, BLOCK)
    label = tl.load(labels_ptr + row)
    weight = tl.load(weights_ptr + row)
    lse = tl.load(lse_ptr + row)
    factor = weight * (1.0 + 2.0 * z_loss * lse)
    whole = columns // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        place = logits_ptr + start + lanes
        softmax = tl.exp(tl.load(place).to(tl.float32) - lse)
        gradient = factor * softmax - tl.where(start + lanes == label, weight, 0.0)
        tl.store(place, gradient.to(logits_ptr.dtype.element_ty))
    if whole < columns:
        inside = whole + lanes < columns
        place = logits_ptr + whole + lanes
        softmax = tl.exp(tl.load(place, mask=inside, other=0.0).to(tl.float32) - lse)
        gradient = factor * softmax - tl.where(whole + lanes == label, weight, 0.0)
        tl.store(place, gradient.to(logits_ptr.dtype.element_ty), mask=inside)


def statistics(logits_nv: torch.Tensor, labels_n: torch.Tensor) -> torch.Tensor:
    """See `Rows`."""
    tokens, columns = logits_nv.shape
    statistics_3n = logits_nv.new_empty(3, tokens, dtype=torch.float32)
    _launch(
        statistics_kernel, logits_nv, labels_n, statistics_3n, columns, logits_nv.stride(0), tokens
    )
    return statistics_3n


def gradient(
    logits_nv: torch.Tensor,
    labels_n: torch.Tensor,
    weights_n: torch.Tensor,
    statistics_3n: torch.Tensor,
    lse_n: torch.Tensor,
    z_loss: float,
) -> None:
    """See `Rows`."""
    columns, stride = logits_nv.shape[1], logits_nv.stride(0)
    _launch(gradient_kernel, logits_nv, labels_n, weights_n, lse_n, z_loss, columns, stride)


def _launch(kernel: Any, logits_nv: torch.Tensor, *arguments: Any) -> None:
    """One program a row, blocks no longer than the row needs."""
    block = min(BLOCK, max(128, triton.next_power_of_2(logits_nv.shape[1])))
    grid = (logits_nv.shape[0],)
    with torch.cuda.device_of(logits_nv):
        kernel[grid](logits_nv, *arguments, BLOCK=block, num_warps=WARPS)


ROWS = Rows(statistics, gradient)
