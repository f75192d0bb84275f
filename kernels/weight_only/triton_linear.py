"""The backend of our Triton kernels for few rows: how many parts, launch shapes, launches."""

from functools import cache
from typing import NamedTuple

import torch
import triton
from emu3_kernels.weight_only.quantized import QuantizedWeight
from emu3_kernels.weight_only.triton_kernels import merge_kernel, parts_kernel

PROGRAMS = 2  # on each multiprocessor at once; shared memory and registers allow it
MOST_PARTS = 16
MERGE_BLOCK = 512


class Launch(NamedTuple):
    """Outputs and inputs of a block, warps that work on it, blocks loaded ahead."""

    block_o: int
    block_i: int
    num_warps: int
    num_stages: int


# For Hopper's shared memory; chosen by arithmetic, not by timings.
HALF = Launch(64, 128, 4, 4)
SINGLE = Launch(64, 64, 4, 3)


def multiply(x_ni: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    """See `linear`. Parts depend on the weight alone: a row's result on no other row."""
    x_ni = x_ni.contiguous()
    (rows, inputs), outputs = x_ni.shape, len(weight.values_oi)
    launch = HALF if x_ni.element_size() == 2 else SINGLE
    blocks = triton.cdiv(outputs, launch.block_o)
    parts, part_size = parts_of(blocks, inputs, launch.block_i, _processors(x_ni.device))
    y_no = x_ni.new_empty(rows, outputs)
    results = y_no if parts == 1 else x_ni.new_empty(parts, rows, outputs, dtype=torch.float32)
    if not y_no.numel():
        return y_no
    with torch.cuda.device_of(x_ni):
        parts_kernel[(blocks, parts)](
            *(x_ni, weight.values_oi, weight.scales_o, results),
            *(rows, outputs, inputs, x_ni.stride(0), part_size),
            PARTS=parts,
            BLOCK_M=max(16, triton.next_power_of_2(rows)),
            BLOCK_O=launch.block_o,
            BLOCK_I=launch.block_i,
            PRECISION="tf32x3",  # of fp32 inputs alone: three tensor core products, near fp32
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
        )
        if parts > 1:
            merge_kernel[(triton.cdiv(y_no.numel(), MERGE_BLOCK),)](
                *(results, weight.scales_o, y_no, outputs, y_no.numel()),
                PARTS=parts,
                BLOCK=MERGE_BLOCK,
            )
    return y_no


def parts_of(blocks: int, inputs: int, block_i: int, processors: int) -> tuple[int, int]:
    """Parts of the inputs, so that all programs fill the multiprocessors once, and their size."""
    steps = triton.cdiv(inputs, block_i)
    parts = max(1, min(PROGRAMS * processors // blocks, steps, MOST_PARTS))
    size = triton.cdiv(steps, parts) * block_i
    return triton.cdiv(inputs, size), size


@cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":  # in the interpreter
        return 8
    return torch.cuda.get_device_properties(device).multi_processor_count
