"""The Triton kernels: a row's keys in several parts at once, then the parts' results into one."""

import triton
import triton.language as tl


@triton.jit
def parts_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    positions_ptr,
    out_ptr,  # of one part the result in the queries' type, else fp32 [b, k, PARTS, w * g, DIM]
    lse_ptr,  # fp32 [b, k, PARTS, w * g], in powers of 2; not written of one part
    query_b,
    query_w,
    query_h,
    key_b,
    key_k,
    key_c,
    value_b,
    value_k,
    value_c,
    positions_b,
    positions_w,
    scale_log2,  # scale * log2(e): the softmax is in powers of 2
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One part of one row's keys of one KV head, for all queries that share it."""
    unit, part = tl.program_id(0), tl.program_id(1)
    row, head = (unit // KV_HEADS).to(tl.int64), unit % KV_HEADS
    positions_ptr += row * positions_b
    length = tl.load(positions_ptr + (WIDTH - 1) * positions_w).to(tl.int32) + 1
    size = _part_size(length, PARTS, BLOCK_N)
    start = part * size
    if start >= length:
        return
    end = tl.minimum(start + size, length)

    # Queries past the last repeat it; they are not stored.
    lanes = tl.arange(0, BLOCK_M)
    queries = tl.minimum(lanes, WIDTH * GROUP - 1)
    width_m, head_m = queries // GROUP, head * GROUP + queries % GROUP
    dims = tl.arange(0, DIM)
    query_ptr += row * query_b
    q_md = tl.load(query_ptr + (width_m * query_w + head_m * query_h)[:, None] + dims[None, :])
    position_m = tl.load(positions_ptr + width_m * positions_w).to(tl.int32)
    key_ptr += row * key_b + head * key_k
    value_ptr += row * value_b + head * value_k

    max_m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    sum_m = tl.zeros([BLOCK_M], tl.float32)
    acc_md = tl.zeros([BLOCK_M, DIM], tl.float32)
    for j in range(start, end, BLOCK_N):
        keys = j + tl.arange(0, BLOCK_N)
        inside = keys[:, None] < end
        rows = keys.to(tl.int64)[:, None]
        k_nd = tl.load(key_ptr + rows * key_c + dims[None, :], mask=inside, other=0.0)
        v_nd = tl.load(value_ptr + rows * value_c + dims[None, :], mask=inside, other=0.0)
        score_mn = tl.dot(q_md, tl.trans(k_nd), input_precision=PRECISION) * scale_log2
        seen_mn = (keys[None, :] <= position_m[:, None]) & (keys[None, :] < end)
        score_mn = tl.where(seen_mn, score_mn, float("-inf"))
        larger_m = tl.maximum(max_m, tl.max(score_mn, 1))
        # An earlier query of the row may have seen nothing of this part yet.
        shift_m = tl.where(larger_m == float("-inf"), 0.0, larger_m)
        prob_mn = tl.exp2(score_mn - shift_m[:, None])
        shrink_m = tl.exp2(max_m - shift_m)
        sum_m = sum_m * shrink_m + tl.sum(prob_mn, 1)
        acc_md = acc_md * shrink_m[:, None]
        acc_md = tl.dot(prob_mn.to(v_nd.dtype), v_nd, acc_md, input_precision=PRECISION)
        max_m = larger_m

    mine_m = lanes < WIDTH * GROUP
    nothing_m = sum_m == 0.0
    sum_m = tl.where(nothing_m, 1.0, sum_m)
    out_md = acc_md / sum_m[:, None]
    if PARTS == 1:
        place_m = (row * WIDTH + width_m) * (KV_HEADS * GROUP) + head_m
    else:
        place_m = (unit.to(tl.int64) * PARTS + part) * (WIDTH * GROUP) + queries
        lse_m = tl.where(nothing_m, float("-inf"), max_m + tl.log2(sum_m))
        tl.store(lse_ptr + place_m, lse_m, mask=mine_m)
    out_ptrs = out_ptr + place_m[:, None] * DIM + dims[None, :]
    tl.store(out_ptrs, out_md.to(out_ptr.dtype.element_ty), mask=mine_m[:, None])


@triton.jit
def merge_kernel(
    parts_ptr,  # what parts_kernel wrote
    lse_ptr,
    positions_ptr,
    out_ptr,  # [b, w, h, DIM]
    positions_b,
    positions_w,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One query of one head: the results of its parts, weighted by their sums of exponentials."""
    head = tl.program_id(0) % (KV_HEADS * GROUP)
    width = tl.program_id(0) // (KV_HEADS * GROUP) % WIDTH
    row = (tl.program_id(0) // (KV_HEADS * GROUP * WIDTH)).to(tl.int64)
    last_ptr = positions_ptr + row * positions_b + (WIDTH - 1) * positions_w
    length = tl.load(last_ptr).to(tl.int32) + 1
    size = _part_size(length, PARTS, BLOCK_N)

    parts, dims = tl.arange(0, PARTS_BLOCK), tl.arange(0, DIM)
    written = parts * size < length
    unit = row * KV_HEADS + head // GROUP
    place_s = (unit * PARTS + parts) * (WIDTH * GROUP) + width * GROUP + head % GROUP
    lse_s = tl.load(lse_ptr + place_s, mask=written, other=float("-inf"))
    weight_s = tl.exp2(lse_s - tl.max(lse_s))  # every query sees the first key
    ptrs = parts_ptr + place_s[:, None] * DIM + dims[None, :]
    part_sd = tl.load(ptrs, mask=written[:, None], other=0.0)
    out_d = tl.sum(part_sd * weight_s[:, None], 0) / tl.sum(weight_s)
    out_ptr += tl.program_id(0).to(tl.int64) * DIM
    tl.store(out_ptr + dims, out_d.to(out_ptr.dtype.element_ty))


@triton.jit
def _part_size(length, PARTS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Keys of a part: a row's keys are dealt out evenly, in whole blocks."""
    return tl.cdiv(tl.cdiv(length, PARTS), BLOCK_N) * BLOCK_N
