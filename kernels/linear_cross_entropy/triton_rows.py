"""The row passes in Triton: one program a row, fp32 inside, no atomics.

Exponentials are powers of two: the factor that makes them so goes into one multiply-add.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from emu3_kernels.linear_cross_entropy.rows import Rows

# Blocks of 8,192 would take so many registers that a multiprocessor holds one program at a time.
BLOCK = 4096
WARPS = 8
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _merge_block(logits, maximum, sum_exp, moment, ENTROPY: tl.constexpr):
    """Take a block of logits x into the running maximum m, sum of exp(x - m), and for the entropy
    sum of exp(x - m) (x - m)."""
    larger = tl.maximum(maximum, tl.max(logits))
    # While all logits are -inf their exponentials are 0; -inf less itself would be NaN.
    shift = tl.where(larger == float("-inf"), 0.0, larger)
    exponentials = tl.exp2(logits * LOG2E - shift * LOG2E)
    scale = tl.exp2((maximum - shift) * LOG2E)
    if ENTROPY:
        less = tl.where(maximum == float("-inf"), 0.0, maximum - shift)
        below = tl.where(exponentials > 0.0, logits - shift, 0.0)  # 0 x -inf would be NaN
        moment = scale * (moment + less * sum_exp) + tl.sum(exponentials * below)
    return larger, sum_exp * scale + tl.sum(exponentials), moment


@triton.jit(do_not_specialize=["tokens"])
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
def _gradient(logits, columns, label, weight, factor, lse_log2):
    """weight x ((1 + 2 z_loss lse) softmax - onehot), of some columns."""
    softmax = tl.exp2(logits.to(tl.float32) * LOG2E - lse_log2)
    return factor * softmax - tl.where(columns == label, weight, 0.0)


@triton.jit
def gradient_kernel(
    logits_ptr,
    labels_ptr,
    weights_ptr,
    lse_ptr,
    out_ptr,
    z_loss,
    columns,
    stride,
    BLOCK: tl.constexpr,
):
    """The gradient by the logits, in their memory: each program reads a block, then writes it."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    out_ptr += row * stride
    lanes = tl.arange(0, BLOCK)
    label = tl.load(labels_ptr + row)
    label = tl.where((label >= 0) & (label < columns), label, -1).to(tl.int32)
    weight = tl.load(weights_ptr + row)
    lse = tl.load(lse_ptr + row)
    factor = weight * (1.0 + 2.0 * z_loss * lse)
    lse_log2 = lse * LOG2E
    whole = columns // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        logits = tl.load(logits_ptr + start + lanes)
        gradient = _gradient(logits, start + lanes, label, weight, factor, lse_log2)
        tl.store(out_ptr + start + lanes, gradient.to(out_ptr.dtype.element_ty))
    if whole < columns:
        inside = whole + lanes < columns
        logits = tl.load(logits_ptr + whole + lanes, mask=inside, other=0.0)
        gradient = _gradient(logits, whole + lanes, label, weight, factor, lse_log2)
        tl.store(out_ptr + whole + lanes, gradient.to(out_ptr.dtype.element_ty), mask=inside)


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
    out_nv: torch.Tensor,
) -> None:
    """See `Rows`."""
    columns, stride = logits_nv.shape[1], logits_nv.stride(0)
    sizes = columns, stride
    _launch(gradient_kernel, logits_nv, labels_n, weights_n, lse_n, out_nv, z_loss, *sizes)


def _launch(kernel: Any, logits_nv: torch.Tensor, *arguments: Any, **constants: bool) -> None:
    """One program a row, blocks no longer than the row needs."""
    block = min(BLOCK, max(128, triton.next_power_of_2(logits_nv.shape[1])))
    grid = (logits_nv.shape[0],)
    with torch.cuda.device_of(logits_nv):
        kernel[grid](logits_nv, *arguments, BLOCK=block, num_warps=WARPS, **constants)


ROWS = Rows(statistics, statistics_with_entropy, gradient)
