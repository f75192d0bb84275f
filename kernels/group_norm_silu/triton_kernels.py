"""The Triton kernels: sums of each group in several parts, then the result place by place."""

import triton
import triton.language as tl


@triton.jit
def sums_kernel(
    input_ptr,
    sums_ptr,  # fp32 [n * groups, 2, PARTS]
    size,  # numbers of a group, which lie side by side
    part_size,  # a multiple of BLOCK
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum and sum of squares of a part of a group, both less the group's first number."""
    group, part = tl.program_id(0), tl.program_id(1)
    input_ptr += group.to(tl.int64) * size
    pivot = tl.load(input_ptr).to(tl.float32)  # keeps squares small where the mean is large
    lanes = tl.arange(0, BLOCK)
    sum_l, squares_l = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    start = part * part_size
    for first in range(start, tl.minimum(start + part_size, size), BLOCK):
        places = first + lanes
        x = tl.load(input_ptr + places, mask=places < size, other=0.0).to(tl.float32)
        x = tl.where(places < size, x - pivot, 0.0)
        sum_l += x
        squares_l += x * x
    sums_ptr += group * 2 * PARTS + part
    tl.store(sums_ptr, tl.sum(sum_l, 0))
    tl.store(sums_ptr + PARTS, tl.sum(squares_l, 0))


@triton.jit
def normed_kernel(
    input_ptr,
    sums_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,  # not read where RATIO is 0
    shift_ptr,
    out_ptr,
    channels,
    group_channels,
    places,  # of a channel
    width,
    eps,
    RATIO: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Some places of one channel."""
    plane = tl.program_id(0)
    channel, group = plane % channels, plane // group_channels
    size = group_channels * places
    part = tl.arange(0, PARTS)
    mean = tl.sum(tl.load(sums_ptr + group * 2 * PARTS + part), 0) / size
    squares = tl.sum(tl.load(sums_ptr + (group * 2 + 1) * PARTS + part), 0) / size
    factor = tl.load(weight_ptr + channel) / tl.sqrt(tl.maximum(squares - mean * mean, 0.0) + eps)
    mean += tl.load(input_ptr + group.to(tl.int64) * size).to(tl.float32)

    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < places
    first = plane.to(tl.int64) * places
    x = tl.load(input_ptr + first + place, mask=inside, other=0.0).to(tl.float32)
    y = (x - mean) * factor + tl.load(bias_ptr + channel)
    if RATIO > 0:
        codes = plane.to(tl.int64) * (places // (RATIO * RATIO))
        code = place // width // RATIO * (width // RATIO) + place % width // RATIO
        scale = tl.load(scale_ptr + codes + code, mask=inside, other=0.0)
        y = y * scale + tl.load(shift_ptr + codes + code, mask=inside, other=0.0)
    tl.store(out_ptr + first + place, y / (1.0 + tl.exp(-y)), mask=inside)
