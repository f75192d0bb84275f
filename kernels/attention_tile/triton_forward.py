"""The forward kernel in Triton: online softmax over the keys that a block of queries sees."""

import triton
import triton.language as tl
from emu3_kernels.attention_tile.triton_masks import ALIGNED, kept, load_if, stretches

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["lse_h", "queries", "threshold"])
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    first_ptr,  # first_q and last_q of KeyRanges
    last_ptr,
    order_ptr,  # blocks of queries, heaviest first
    rows_ptr,  # of dropout, see words_kernel
    words_ptr,
    q_t,
    q_h,
    k_t,
    k_h,
    v_t,
    v_h,
    out_t,
    out_h,
    lse_h,
    queries,
    scale_log2,  # scale * log2(e): the softmax is in powers of 2
    threshold,
    dropout_factor,  # 1 / (1 - p)
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    RUNNING: tl.constexpr,
    DROPOUT: tl.constexpr,
    INTERPRETED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Heads that share keys run side by side, so that all but one find them in the L2 cache.
    head = tl.program_id(0) % HEADS
    start = tl.load(order_ptr + tl.program_id(0) // HEADS) * BLOCK_M
    end = tl.minimum(start + BLOCK_M, queries)
    low, high = tl.load(first_ptr + start), tl.load(last_ptr + end - 1)
    if RUNNING & (low >= high):
        return

    # Rows past the end repeat the last query; they are not stored.
    rows = tl.minimum(start + tl.arange(0, BLOCK_M), queries - 1).to(tl.int64)
    dims = tl.arange(0, DIM)
    q_md = tl.load(q_ptr + head * q_h + rows[:, None] * q_t + dims[None, :])
    first_m, last_m = tl.load(first_ptr + rows), tl.load(last_ptr + rows)
    multiplier_m, offset_m = first_m, first_m
    if DROPOUT:
        rows_ptr += head.to(tl.int64) * queries
        multiplier_m = tl.load(rows_ptr + rows)
        offset_m = tl.load(rows_ptr + HEADS * queries.to(tl.int64) + rows)
    k_ptr += head // GROUP * k_h
    v_ptr += head // GROUP * v_h

    max_m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    sum_m = tl.zeros([BLOCK_M], tl.float32)
    acc_md = tl.zeros([BLOCK_M, DIM], tl.float32)
    low = low // ALIGNED * ALIGNED
    borders = stretches(low, tl.load(first_ptr + end - 1), tl.load(last_ptr + start), high, BLOCK_N)
    for stretch in tl.static_range(3):
        for j in range(borders[stretch], borders[stretch + 1], BLOCK_N):
            acc_md, max_m, sum_m = _step(
                acc_md, max_m, sum_m, q_md, k_ptr, v_ptr, k_t, v_t, j, high, first_m, last_m,
                scale_log2, multiplier_m, offset_m, words_ptr, threshold,
                DIM, BLOCK_N, stretch != 1, DROPOUT, INTERPRETED, PRECISION,
            )  # fmt: skip

    nothing_m = sum_m == 0.0
    sum_m = tl.where(nothing_m, 1.0, sum_m)
    lse_m = tl.where(nothing_m, float("-inf"), (max_m + tl.log2(sum_m)) * LN2)
    out_md = acc_md * (dropout_factor / sum_m)[:, None]
    out_ptrs = out_ptr + head * out_h + rows[:, None] * out_t + dims[None, :]
    lse_ptrs = lse_ptr + head * lse_h + rows
    mine_m = start + tl.arange(0, BLOCK_M) < end
    if RUNNING:
        before_m = tl.load(lse_ptrs)
        before_md = tl.load(out_ptrs)
        out_md, lse_m = _merge(before_md, before_m, out_md, lse_m)
    tl.store(out_ptrs, out_md, mask=mine_m[:, None])
    tl.store(lse_ptrs, lse_m, mask=mine_m)


@triton.jit
def _step(
    acc_md, max_m, sum_m, q_md, k_ptr, v_ptr, k_t, v_t, j, high, first_m, last_m,
    scale_log2, multiplier_m, offset_m, words_ptr, threshold,
    DIM: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr, DROPOUT: tl.constexpr,
    INTERPRETED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take keys [j, j + BLOCK_N) into the online softmax."""
    keys = tl.multiple_of(j, ALIGNED) + tl.arange(0, BLOCK_N)
    rows = keys.to(tl.int64)[:, None]
    dims = tl.arange(0, DIM)[None, :]
    k_nd = load_if(k_ptr + rows * k_t + dims, keys[:, None] < high, MASKED)
    v_nd = load_if(v_ptr + rows * v_t + dims, keys[:, None] < high, MASKED)
    score_mn = tl.dot(q_md, tl.trans(k_nd), input_precision=PRECISION)
    if MASKED:
        visible_mn = (keys[None, :] >= first_m[:, None]) & (keys[None, :] < last_m[:, None])
        score_mn = tl.where(visible_mn, score_mn, float("-inf"))
    larger_m = tl.maximum(max_m, tl.max(score_mn, 1) * scale_log2)
    shift_m = larger_m
    if MASKED:  # a row that saw nothing yet
        shift_m = tl.where(larger_m == float("-inf"), 0.0, larger_m)
    prob_mn = tl.exp2(score_mn * scale_log2 - shift_m[:, None])
    shrink_m = tl.exp2(max_m - shift_m)
    sum_m = sum_m * shrink_m + tl.sum(prob_mn, 1)
    if DROPOUT:
        word_n = load_if(words_ptr + keys, keys < high, MASKED)
        hash_mn = multiplier_m[:, None] * word_n[None, :] + offset_m[:, None]
        prob_mn = kept(prob_mn, hash_mn, threshold, INTERPRETED)
    acc_md = acc_md * shrink_m[:, None]
    acc_md = tl.dot(prob_mn.to(v_nd.dtype), v_nd, acc_md, input_precision=PRECISION)
    return acc_md, larger_m, sum_m


@triton.jit
def _merge(out_md, lse_m, new_out_md, new_lse_m):
    """passes.merge in registers: attention over further keys into out and lse."""
    larger_m = tl.maximum(lse_m, new_lse_m)
    shift_m = tl.where(larger_m == float("-inf"), 0.0, larger_m)
    weight_m, new_weight_m = tl.exp(lse_m - shift_m), tl.exp(new_lse_m - shift_m)
    total_m = weight_m + new_weight_m
    total_m = tl.where(total_m == 0.0, 1.0, total_m)
    out_md = out_md * (weight_m / total_m)[:, None] + new_out_md * (new_weight_m / total_m)[:, None]
    return out_md, larger_m + tl.log(total_m)
