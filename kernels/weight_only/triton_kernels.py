"""The Triton kernels: a block of output rows in several parts at once, then the parts' sum."""

import triton
import triton.language as tl


@triton.jit
def parts_kernel(
    x_ptr,
    values_ptr,
    scales_ptr,
    out_ptr,  # of one part the result in x's type, else fp32 [PARTS, n, o]
    rows,
    outputs,
    inputs,
    x_n,
    part_size,  # inputs of a part, a multiple of BLOCK_I
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some output rows of the weight times all rows of x, over one part of the inputs."""
    part = tl.program_id(1)
    lanes_m, lanes_i = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_I)
    lanes_o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    # Rows past the end repeat the last; they are not stored.
    x_ptr += tl.minimum(lanes_m, rows - 1)[None, :].to(tl.int64) * x_n
    values_ptr += tl.minimum(lanes_o, outputs - 1)[:, None].to(tl.int64) * inputs
    start = part * part_size
    end = tl.minimum(start + part_size, inputs)
    acc_om = tl.zeros([BLOCK_O, BLOCK_M], tl.float32)
    for j in range(start, end, BLOCK_I):
        places = j + lanes_i
        values_oi = tl.load(values_ptr + places[None, :], mask=places[None, :] < end, other=0.0)
        x_im = tl.load(x_ptr + places[:, None], mask=places[:, None] < end, other=0.0)
        acc_om = tl.dot(values_oi.to(x_im.dtype), x_im, acc_om, input_precision=PRECISION)

    if PARTS == 1:
        scales_o = tl.load(scales_ptr + lanes_o, mask=lanes_o < outputs, other=0.0)
        acc_om *= scales_o[:, None]
    out_ptr += part.to(tl.int64) * rows * outputs
    ptrs = out_ptr + lanes_m[None, :] * outputs + lanes_o[:, None]
    inside = (lanes_m[None, :] < rows) & (lanes_o[:, None] < outputs)
    tl.store(ptrs, acc_om.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def merge_kernel(
    parts_ptr, scales_ptr, out_ptr, outputs, count, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    """The parts' sum times the scales, in the order of the parts."""
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = lanes < count
    total = tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(parts_ptr + part * count + lanes, mask=inside, other=0.0)
    scales = tl.load(scales_ptr + lanes % outputs, mask=inside, other=0.0)
    tl.store(out_ptr + lanes, (total * scales).to(out_ptr.dtype.element_ty), mask=inside)
