"""The backend of our Triton kernels: launch shapes and launches."""

import torch
import triton
from emu3_kernels.group_norm_silu.triton_kernels import normed_kernel, sums_kernel

BLOCK, NUM_WARPS = 1024, 4  # 8 numbers a thread; chosen by arithmetic, not by timings
MOST_PARTS = 32  # of a group


def normed(
    input_nchw: torch.Tensor,
    groups: int,
    weight_c: torch.Tensor,
    bias_c: torch.Tensor,
    eps: float,
    scale_nchw: torch.Tensor | None,
    shift_nchw: torch.Tensor | None,
) -> torch.Tensor:
    """See `group_norm_silu`."""
    count, channels, height, width = input_nchw.shape
    input_nchw = input_nchw.contiguous()
    out_nchw = torch.empty_like(input_nchw, dtype=torch.float32)
    if not out_nchw.numel():
        return out_nchw
    places, size = height * width, channels // groups * height * width
    parts, part_size = parts_of(size)
    sums = input_nchw.new_empty(count * groups, 2, parts, dtype=torch.float32)
    ratio = 0 if scale_nchw is None else height // scale_nchw.shape[2]
    # without them the kernel reads neither; any pointer will do
    scale, shift = (weight_c if x is None else x.contiguous() for x in (scale_nchw, shift_nchw))
    with torch.cuda.device_of(input_nchw):
        sums_kernel[(count * groups, parts)](
            *(input_nchw, sums, size, part_size),
            PARTS=parts,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
        )
        normed_kernel[(count * channels, triton.cdiv(places, BLOCK))](
            *(input_nchw, sums, weight_c, bias_c, scale, shift, out_nchw),
            *(channels, channels // groups, places, width, eps),
            RATIO=ratio,
            PARTS=parts,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
        )
    return out_nchw


def parts_of(size: int) -> tuple[int, int]:
    """Parts of a group, a power of 2, of at least four blocks each, and their size."""
    blocks = triton.cdiv(size, BLOCK)
    parts = min(MOST_PARTS, triton.next_power_of_2(triton.cdiv(blocks, 4)))
    return parts, triton.cdiv(blocks, parts) * BLOCK
