"""The backward kernels in Triton: dq by blocks of queries, dk and dv by blocks of keys.

Each value is written by one program, so there are no atomics. Both compute the probabilities again
from the log-sum-exp over all keys.
"""

import triton
import triton.language as tl
from emu3_kernels.attention_tile.triton_masks import (
    ALIGNED,
    kept,
    load_if,
    query_part,
    stretches,
    stretches_of_part,
)

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["delta_h", "lse_h", "queries", "threshold"])
def dq_kernel(
    dout_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    delta_ptr,
    lse_ptr,
    dq_ptr,
    first_ptr,  # first_q and last_q of KeyRanges
    last_ptr,
    order_ptr,  # blocks of queries, heaviest first
    rows_ptr,  # of dropout, see words_kernel
    words_ptr,
    do_t,
    do_h,
    q_t,
    q_h,
    k_t,
    k_h,
    v_t,
    v_h,
    delta_h,
    lse_h,
    dq_t,
    dq_h,
    queries,
    scale,
    threshold,
    dropout_factor,  # 1 / (1 - p)
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ADD: tl.constexpr,  # to what dq holds, instead of writing over it
    DROPOUT: tl.constexpr,
    INTERPRETED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head = tl.program_id(0) % HEADS
    start = tl.load(order_ptr + tl.program_id(0) // HEADS) * BLOCK_M
    end = tl.minimum(start + BLOCK_M, queries)
    low, high = tl.load(first_ptr + start), tl.load(last_ptr + end - 1)
    if ADD & (low >= high):
        return

    rows = tl.minimum(start + tl.arange(0, BLOCK_M), queries - 1).to(tl.int64)
    dims = tl.arange(0, DIM)
    q_md = tl.load(q_ptr + head * q_h + rows[:, None] * q_t + dims[None, :])
    do_md = tl.load(dout_ptr + head * do_h + rows[:, None] * do_t + dims[None, :])
    lse_m = tl.load(lse_ptr + head * lse_h + rows) * LOG2E
    delta_m = tl.load(delta_ptr + head * delta_h + rows)
    first_m, last_m = tl.load(first_ptr + rows), tl.load(last_ptr + rows)
    multiplier_m, offset_m = first_m, first_m
    if DROPOUT:
        rows_ptr += head.to(tl.int64) * queries
        multiplier_m = tl.load(rows_ptr + rows)
        offset_m = tl.load(rows_ptr + HEADS * queries.to(tl.int64) + rows)
        delta_m /= dropout_factor  # all of dq is multiplied by it at the end
    k_ptr += head // GROUP * k_h
    v_ptr += head // GROUP * v_h

    dq_md = tl.zeros([BLOCK_M, DIM], tl.float32)
    low = low // ALIGNED * ALIGNED
    borders = stretches(low, tl.load(first_ptr + end - 1), tl.load(last_ptr + start), high, BLOCK_N)
    for stretch in tl.static_range(3):
        for j in range(borders[stretch], borders[stretch + 1], BLOCK_N):
            dq_md = _dq_step(
                dq_md, q_md, do_md, lse_m, delta_m, k_ptr, v_ptr, k_t, v_t, j, high,
                first_m, last_m, scale, multiplier_m, offset_m, words_ptr, threshold,
                DIM, BLOCK_N, stretch != 1, DROPOUT, INTERPRETED, PRECISION,
            )  # fmt: skip

    dq_ptrs = dq_ptr + head * dq_h + rows[:, None] * dq_t + dims[None, :]
    mine_m1 = (start + tl.arange(0, BLOCK_M) < end)[:, None]
    _write(dq_ptrs, dq_md * (scale * dropout_factor), mine_m1, ADD)


@triton.jit
def _write(ptrs, values, mask, ADD: tl.constexpr):
    if ADD:
        values += tl.load(ptrs, mask=mask, other=0.0)
    tl.store(ptrs, values, mask=mask)


@triton.jit
def _dq_step(
    dq_md, q_md, do_md, lse_m, delta_m, k_ptr, v_ptr, k_t, v_t, j, high, first_m, last_m,
    scale, multiplier_m, offset_m, words_ptr, threshold,
    DIM: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr, DROPOUT: tl.constexpr,
    INTERPRETED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what keys [j, j + BLOCK_N) give to dq."""
    keys = tl.multiple_of(j, ALIGNED) + tl.arange(0, BLOCK_N)
    rows = keys.to(tl.int64)[:, None]
    dims = tl.arange(0, DIM)[None, :]
    k_nd = load_if(k_ptr + rows * k_t + dims, keys[:, None] < high, MASKED)
    v_nd = load_if(v_ptr + rows * v_t + dims, keys[:, None] < high, MASKED)
    score_mn = tl.dot(q_md, tl.trans(k_nd), input_precision=PRECISION)
    prob_mn = tl.exp2(score_mn * (scale * LOG2E) - lse_m[:, None])
    if MASKED:
        visible_mn = (keys[None, :] >= first_m[:, None]) & (keys[None, :] < last_m[:, None])
        prob_mn = tl.where(visible_mn, prob_mn, 0.0)
    dprob_mn = tl.dot(do_md, tl.trans(v_nd), input_precision=PRECISION)
    if DROPOUT:
        word_n = load_if(words_ptr + keys, keys < high, MASKED)
        hash_mn = multiplier_m[:, None] * word_n[None, :] + offset_m[:, None]
        dprob_mn = kept(dprob_mn, hash_mn, threshold, INTERPRETED)
    dscore_mn = prob_mn * (dprob_mn - delta_m[:, None])
    return tl.dot(dscore_mn.to(k_nd.dtype), k_nd, dq_md, input_precision=PRECISION)


@triton.jit(
    do_not_specialize=[
        *("delta_h", "lse_h", "queries", "num_keys"),
        *("head_parts", "query_parts", "threshold"),
    ]
)
def dkdv_kernel(
    dout_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    delta_ptr,
    lse_ptr,
    dk_ptr,
    dv_ptr,
    parts_ptr,  # fp32 [head parts x query parts, 2, keys, kv heads, dim], written if SPLIT
    first_q_ptr,  # of KeyRanges, for the mask
    last_q_ptr,
    first_k_ptr,  # the same by key: the queries that see it
    last_k_ptr,
    order_ptr,  # blocks of keys, heaviest first
    rows_ptr,  # of dropout, see words_kernel
    words_ptr,
    do_t,
    do_h,
    q_t,
    q_h,
    k_t,
    k_h,
    v_t,
    v_h,
    delta_h,
    lse_h,
    dk_t,
    dk_h,
    dv_t,
    dv_h,
    queries,
    num_keys,
    head_parts,  # programs that share the query heads of a block of keys
    query_parts,  # programs that share its queries
    scale,
    threshold,
    dropout_factor,  # 1 / (1 - p)
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ADD: tl.constexpr,  # to what dk and dv hold, instead of writing over it
    SPLIT: tl.constexpr,  # write parts, which sum_parts_kernel adds up
    DROPOUT: tl.constexpr,
    INTERPRETED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    kv_head = tl.program_id(0) % KV_HEADS
    share = tl.program_id(0) // KV_HEADS
    start = tl.load(order_ptr + share // (head_parts * query_parts)) * BLOCK_N
    end = tl.minimum(start + BLOCK_N, num_keys)
    low, high = tl.load(first_k_ptr + start), tl.load(last_k_ptr + end - 1)
    part = share % (head_parts * query_parts)
    if SPLIT:
        low, high = query_part(low, high, part // head_parts, query_parts, BLOCK_M)
    if (SPLIT | ADD) & (low >= high):
        return

    keys = tl.minimum(start + tl.arange(0, BLOCK_N), num_keys - 1)
    rows = keys.to(tl.int64)[:, None]
    dims = tl.arange(0, DIM)[None, :]
    k_nd = tl.load(k_ptr + kv_head * k_h + rows * k_t + dims)
    v_nd = tl.load(v_ptr + kv_head * v_h + rows * v_t + dims)
    word_n = keys
    if DROPOUT:
        word_n = tl.load(words_ptr + keys)
    dk_nd = tl.zeros([BLOCK_N, DIM], tl.float32)
    dv_nd = tl.zeros([BLOCK_N, DIM], tl.float32)
    borders = stretches_of_part(
        low, tl.load(first_k_ptr + end - 1), tl.load(last_k_ptr + start), high, BLOCK_M
    )
    heads = GROUP // head_parts
    first_head = kv_head * GROUP + part % head_parts * heads
    keep_rate = 1.0 / dropout_factor
    offsets = KV_HEADS * GROUP * queries.to(tl.int64)  # from multipliers to offsets
    for head in range(first_head, first_head + heads):
        q_head, do_head = q_ptr + head * q_h, dout_ptr + head * do_h
        lse_head, delta_head = lse_ptr + head * lse_h, delta_ptr + head * delta_h
        rows_head = rows_ptr + queries.to(tl.int64) * head
        for stretch in tl.static_range(3):
            for i in range(borders[stretch], borders[stretch + 1], BLOCK_M):
                dk_nd, dv_nd = _dkdv_step(
                    dk_nd, dv_nd, k_nd, v_nd, keys, word_n, q_head, do_head, lse_head,
                    delta_head, q_t, do_t, i, high, first_q_ptr, last_q_ptr, scale,
                    rows_head, offsets, threshold, keep_rate,
                    DIM, BLOCK_M, stretch != 1, DROPOUT, INTERPRETED, PRECISION,
                )  # fmt: skip

    dk_nd *= scale * dropout_factor
    dv_nd *= dropout_factor
    mine_n1 = (start + tl.arange(0, BLOCK_N) < end)[:, None]
    if SPLIT:
        parts_ptr += (part * 2).to(tl.int64) * num_keys * (KV_HEADS * DIM)
        part_ptrs = parts_ptr + kv_head * DIM + rows * (KV_HEADS * DIM) + dims
        tl.store(part_ptrs, dk_nd, mask=mine_n1)
        tl.store(part_ptrs + num_keys.to(tl.int64) * (KV_HEADS * DIM), dv_nd, mask=mine_n1)
    else:
        _write(dk_ptr + kv_head * dk_h + rows * dk_t + dims, dk_nd, mine_n1, ADD)
        _write(dv_ptr + kv_head * dv_h + rows * dv_t + dims, dv_nd, mine_n1, ADD)


@triton.jit
def _dkdv_step(
    dk_nd, dv_nd, k_nd, v_nd, keys, word_n, q_ptr, do_ptr, lse_ptr, delta_ptr,
    q_t, do_t, i, high, first_ptr, last_ptr, scale,
    rows_ptr, offsets, threshold, keep_rate,
    DIM: tl.constexpr, BLOCK_M: tl.constexpr, MASKED: tl.constexpr, DROPOUT: tl.constexpr,
    INTERPRETED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what queries [i, i + BLOCK_M) of one head give to dk and dv."""
    queries = i + tl.arange(0, BLOCK_M)
    inside = queries < high
    rows = queries.to(tl.int64)[:, None]
    dims = tl.arange(0, DIM)[None, :]
    q_md = load_if(q_ptr + rows * q_t + dims, inside[:, None], MASKED)
    do_md = load_if(do_ptr + rows * do_t + dims, inside[:, None], MASKED)
    lse_m = load_if(lse_ptr + queries, inside, MASKED) * LOG2E
    delta_m = load_if(delta_ptr + queries, inside, MASKED)
    # Keys by queries: the probabilities are the left operand then, which may stay in registers.
    score_nm = tl.dot(k_nd, tl.trans(q_md), input_precision=PRECISION)
    prob_nm = tl.exp2(score_nm * (scale * LOG2E) - lse_m[None, :])
    if MASKED:
        first_m = tl.load(first_ptr + queries, mask=inside, other=0)
        last_m = tl.load(last_ptr + queries, mask=inside, other=0)
        visible_nm = (keys[:, None] >= first_m[None, :]) & (keys[:, None] < last_m[None, :])
        prob_nm = tl.where(visible_nm, prob_nm, 0.0)
    dprob_nm = tl.dot(v_nd, tl.trans(do_md), input_precision=PRECISION)
    kept_nm = prob_nm
    if DROPOUT:
        multiplier_m = load_if(rows_ptr + queries, inside, MASKED)
        offset_m = load_if(rows_ptr + offsets + queries, inside, MASKED)
        hash_nm = multiplier_m[None, :] * word_n[:, None] + offset_m[None, :]
        kept_nm = kept(prob_nm, hash_nm, threshold, INTERPRETED)
        # dk is divided by keep_rate at the end.
        dscore_nm = kept_nm * dprob_nm - prob_nm * (delta_m * keep_rate)[None, :]
    else:
        dscore_nm = prob_nm * (dprob_nm - delta_m[None, :])
    dv_nd = tl.dot(kept_nm.to(do_md.dtype), do_md, dv_nd, input_precision=PRECISION)
    dk_nd = tl.dot(dscore_nm.to(q_md.dtype), q_md, dk_nd, input_precision=PRECISION)
    return dk_nd, dv_nd


@triton.jit(do_not_specialize=["num_keys", "head_parts", "query_parts"])
def sum_parts_kernel(
    parts_ptr,  # as dkdv_kernel wrote them
    dk_ptr,
    dv_ptr,
    first_k_ptr,
    last_k_ptr,
    dk_t,
    dk_h,
    dv_t,
    dv_h,
    num_keys,
    head_parts,
    query_parts,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,  # keys of a program, a divisor of BLOCK_N
    ADD: tl.constexpr,
):
    """dk and dv of some keys and a head from their parts, in the order of the parts."""
    kv_head = tl.program_id(0) % KV_HEADS
    keys = tl.program_id(0) // KV_HEADS * ROWS + tl.arange(0, ROWS)
    start = tl.program_id(0) // KV_HEADS * ROWS // BLOCK_N * BLOCK_N
    end = tl.minimum(start + BLOCK_N, num_keys)
    low, high = tl.load(first_k_ptr + start), tl.load(last_k_ptr + end - 1)
    if ADD & (low >= high):
        return
    mine_n1 = (keys < end)[:, None]
    rows = keys.to(tl.int64)[:, None]
    dims = tl.arange(0, DIM)[None, :]
    one = num_keys.to(tl.int64) * (KV_HEADS * DIM)
    part_ptrs = parts_ptr + kv_head * DIM + rows * (KV_HEADS * DIM) + dims
    dk_nd = tl.zeros([ROWS, DIM], tl.float32)
    dv_nd = tl.zeros([ROWS, DIM], tl.float32)
    for query in range(0, query_parts):
        part_low, part_high = query_part(low, high, query, query_parts, BLOCK_M)
        if part_low < part_high:  # else the part was not written
            for part in range(query * head_parts, (query + 1) * head_parts):
                dk_nd += tl.load(part_ptrs + part * 2 * one, mask=mine_n1, other=0.0)
                dv_nd += tl.load(part_ptrs + (part * 2 + 1) * one, mask=mine_n1, other=0.0)
    _write(dk_ptr + kv_head * dk_h + rows * dk_t + dims, dk_nd, mine_n1, ADD)
    _write(dv_ptr + kv_head * dv_h + rows * dv_t + dims, dv_nd, mine_n1, ADD)
