"""The row passes in Triton: one program a row, fp32 inside, no atomics."""

from typing import Any

import torch
import triton
import triton.language as tl
from emu3_kernels.linear_cross_entropy.rows import Rows

BLOCK = 8192
WARPS = 8


@triton.jit
def _merge_block(logits, maximum, sum_exp, moment, ENTROPY: tl.constexpr):
    """Take a block of logits x into the running maximum m, sum of exp(x - m), and for the entropy
    sum of exp(x - m) (x - m)."""
    larger = tl.maximum(maximum, tl.max(logits))
    # While all logits are -inf their exponentials are 0; -inf less itself would be NaN.
    shift = tl.where(larger == float("-inf"), 0.0, larger)
    below = logits - shift
    exponentials = tl.exp(below)
    scale = tl.exp(maximum - shift)
    if ENTROPY:
        less = tl.where(maximum == float("-inf"), 0.0, maximum - shift)
        below = tl.where(exponentials > 0.0, below, 0.0)  # 0 x -inf would be NaN
        moment = scale * (moment + less * sum_exp) + tl.sum(exponentials * below)
    return larger, sum_exp * scale + tl.sum(exponentials), moment


@triton.jit
def statistics_kernel(
    logits_ptr,
    labels_ptr,
    statistics_ptr,
    columns,
    stride,
    tokens,
    BLOCK: tl.constexpr,
    ENTROPY: tl.constexpr,
):
    """[3, tokens]: largest logit, sum of exponentials, target logit of each row.

    With ENTROPY [4, tokens]: then the sum that `Rows.statistics_with_entropy` adds.
    """
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    lanes = tl.arange(0, BLOCK)
    maximum = tl.full((), float("-inf"), tl.float32)
    sum_exp = tl.full((), 0.0, tl.float32)
    moment = tl.full((), 0.0, tl.float32)
    # Only the last block is masked: a mask that may end anywhere would split every wide load.
    whole = columns // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        logits = tl.load(logits_ptr + start + lanes).to(tl.float32)
        maximum, sum_exp, moment = _merge_block(logits, maximum, sum_exp, moment, ENTROPY)
    if whole < columns:
        inside = whole + lanes < columns
        logits = tl.load(logits_ptr + whole + lanes, mask=inside, other=float("-inf"))
        logits = logits.to(tl.float32)
        maximum, sum_exp, moment = _merge_block(logits, maximum, sum_exp, moment, ENTROPY)
    label = tl.load(labels_ptr + row)
    here = (label >= 0) & (label < columns)
    target = tl.load(logits_ptr + tl.where(here, label, 0), mask=here, other=0.0).to(tl.float32)
    tl.store(statistics_ptr + row, maximum)
    tl.store(statistics_ptr + tokens + row, sum_exp)
    tl.store(statistics_ptr + 2 * tokens + row, target)
    if ENTROPY:
        tl.store(statistics_ptr + 3 * tokens + row, moment)


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
    return _statistics(logits_nv, labels_n, entropy=False)


def statistics_with_entropy(logits_nv: torch.Tensor, labels_n: torch.Tensor) -> torch.Tensor:
    """See `Rows`."""
    return _statistics(logits_nv, labels_n, entropy=True)


def _statistics(logits_nv: torch.Tensor, labels_n: torch.Tensor, entropy: bool) -> torch.Tensor:
    (tokens, columns), stride = logits_nv.shape, logits_nv.stride(0)
    statistics_sn = logits_nv.new_empty(3 + entropy, tokens, dtype=torch.float32)
    sizes = columns, stride, tokens
    _launch(statistics_kernel, logits_nv, labels_n, statistics_sn, *sizes, ENTROPY=entropy)
    return statistics_sn


def gradient(
    logits_nv: torch.Tensor,
    labels_n: torch.Tensor,
    weights_n: torch.Tensor,
    statistics_3n: torch.Tensor | None,
    lse_n: torch.Tensor,
    z_loss: float,
) -> None:
    """See `Rows`."""
    columns, stride = logits_nv.shape[1], logits_nv.stride(0)
    _launch(gradient_kernel, logits_nv, labels_n, weights_n, lse_n, z_loss, columns, stride)


def _launch(kernel: Any, logits_nv: torch.Tensor, *arguments: Any, **constants: bool) -> None:
    """One program a row, blocks no longer than the row needs."""
    block = min(BLOCK, max(128, triton.next_power_of_2(logits_nv.shape[1])))
    grid = (logits_nv.shape[0],)
    with torch.cuda.device_of(logits_nv):
        kernel[grid](logits_nv, *arguments, BLOCK=block, num_warps=WARPS, **constants)


ROWS = Rows(statistics, statistics_with_entropy, gradient)
