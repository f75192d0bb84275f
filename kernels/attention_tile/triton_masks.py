"""Shared by the Triton kernels: dropout's rows and words, and loops split by whether they mask."""

import triton
import triton.language as tl

HEAD = tl.constexpr(0x9E3779B9)  # the constants of dropout.py
QUERY = tl.constexpr(0x85EBCA6B)
OFFSET = tl.constexpr(0xC2B2AE35)
ALIGNED = tl.constexpr(16)  # loops over keys begin at multiples: words are then copied in pairs


@triton.jit
def mix(word):
    """murmur3's finalizer on uint32, as dropout.py has it."""
    word = (word ^ (word >> 16)) * 0x85EBCA6B
    word = (word ^ (word >> 13)) * 0xC2B2AE35
    return word ^ (word >> 16)


@triton.jit(do_not_specialize=["queries", "num_keys", "dropout_key", "first_head"])
def words_kernel(
    query_index_ptr,
    key_index_ptr,
    rows_ptr,  # int32 [2, heads, queries], written: multipliers, then offsets
    words_ptr,  # int32 [keys], written
    queries,
    num_keys,
    dropout_key,
    first_head,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Dropout.rows of all queries, and the words of all keys (programs of "head" HEADS)."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1)
    if head == HEADS:
        index = tl.load(key_index_ptr + places, mask=places < num_keys, other=0)
        word = mix(index.to(tl.uint32)).to(tl.int32, bitcast=True)
        tl.store(words_ptr + places, word, mask=places < num_keys)
        return
    inside = places < queries
    index = tl.load(query_index_ptr + places, mask=inside, other=0).to(tl.uint32)
    salt = mix(dropout_key.to(tl.uint32) + (first_head + head).to(tl.uint32) * HEAD)
    multiplier = mix(salt + index * QUERY).to(tl.int32, bitcast=True)
    offset = mix((salt ^ 0xFFFFFFFF) + index * OFFSET).to(tl.int32, bitcast=True)
    row_ptrs = rows_ptr + head.to(tl.int64) * queries + places
    tl.store(row_ptrs, multiplier, mask=inside)
    tl.store(row_ptrs + HEADS * queries.to(tl.int64), offset, mask=inside)


@triton.jit
def load_if(ptrs, mask, MASKED: tl.constexpr):
    """Load; with masks 0 in the place of what is masked."""
    if MASKED:
        return tl.load(ptrs, mask=mask, other=0)
    return tl.load(ptrs)


@triton.jit
def kept(values, hashes, threshold, INTERPRETED: tl.constexpr):
    """The values whose hash is at least the threshold, 0 in the place of the others.

    Written in PTX, because LLVM moves the choice of `tl.where` behind the rounding of the values to
    16 bits, takes pairs of these apart, and so adds half as many instructions again.
    """
    if INTERPRETED:
        return tl.where(hashes >= threshold, values, 0.0)
    return tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ge.s32 p, $2, $3; selp.f32 $0, $1, 0f00000000, p; }",
        "=f,f,r,r",
        [values, hashes, threshold],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def stretches(low, full_low, full_high, high, BLOCK: tl.constexpr):
    """Borders of three loops in steps of BLOCK: with masks, without, and with masks again.

    [full_low, full_high) lies in [low, high) and needs no masks. If low is a multiple of ALIGNED,
    all borders but the last are, and the compiler sees it.
    """
    start = low + tl.cdiv(tl.maximum(full_low - low, 0), BLOCK) * BLOCK
    return low, start, start + tl.maximum(full_high - start, 0) // BLOCK * BLOCK, high


@triton.jit
def stretches_of_part(low, full_low, full_high, high, BLOCK: tl.constexpr):
    """`stretches`, where [full_low, full_high) may reach beyond [low, high)."""
    low, start, _, high = stretches(low, full_low, full_high, high, BLOCK)
    start = tl.minimum(start, high)
    full_high = tl.minimum(full_high, high)
    return low, start, start + tl.maximum(full_high - start, 0) // BLOCK * BLOCK, high


@triton.jit
def query_part(low, high, part, parts, BLOCK: tl.constexpr):
    """One of equal parts of [low, high), in whole blocks; the last parts may be empty."""
    each = tl.cdiv(tl.cdiv(high - low, BLOCK), parts) * BLOCK
    return low + part * each, tl.minimum(low + (part + 1) * each, high)
