"""The Triton kernel: some rows against all codes, a block of codes at a time."""

import triton
import triton.language as tl


@triton.jit
def search_kernel(
    rows_ptr,
    book_ptr,  # [c, codes]: a channel of neighbouring codes lies side by side
    out_ptr,
    rows,
    codes,
    CHANNELS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Sums of squared differences in fp32: no tensor cores, whose tf32 would find other codes."""
    lanes_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    lanes_k = tl.arange(0, BLOCK_K)
    # Rows past the end repeat the last; they are not stored.
    rows_ptr += tl.minimum(lanes_m, rows - 1).to(tl.int64) * CHANNELS
    least_mk = tl.full([BLOCK_M, BLOCK_K], float("inf"), tl.float32)
    code_mk = tl.zeros([BLOCK_M, BLOCK_K], tl.int32) + lanes_k[None, :]
    for first in range(0, codes, BLOCK_K):
        places_k = first + lanes_k
        distance_mk = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
        for channel in tl.static_range(CHANNELS):
            row_m = tl.load(rows_ptr + channel)
            book_k = tl.load(
                book_ptr + channel * codes + places_k, mask=places_k < codes, other=float("inf")
            )
            difference_mk = row_m[:, None] - book_k[None, :]
            distance_mk += difference_mk * difference_mk
        nearer_mk = distance_mk < least_mk  # not of equal ones: the first stays
        least_mk = tl.where(nearer_mk, distance_mk, least_mk)
        code_mk = tl.where(nearer_mk, places_k[None, :], code_mk)
    is_least_mk = least_mk == tl.min(least_mk, 1)[:, None]
    code_m = tl.min(tl.where(is_least_mk, code_mk, 2147483647), 1)
    tl.store(out_ptr + lanes_m, code_m.to(tl.int64), mask=lanes_m < rows)
