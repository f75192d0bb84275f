"""Shared by the Triton kernels: the hash of dropout, and loops split by whether they mask."""

import triton
import triton.language as tl

HEAD = tl.constexpr(0x9E3779B9)  # the constants of dropout.py
QUERY = tl.constexpr(0x85EBCA6B)
KEY = tl.constexpr(0xC2B2AE35)


@triton.jit
def mix(word):
    """murmur3's finalizer on uint32, as dropout.py has it."""
    word = (word ^ (word >> 16)) * 0x85EBCA6B
    word = (word ^ (word >> 13)) * 0xC2B2AE35
    return word ^ (word >> 16)


@triton.jit
def row_salts(dropout_key, head, query_index):
    """The part of the hash that does not depend on the key."""
    salt = mix(dropout_key.to(tl.uint32) + head.to(tl.uint32) * HEAD)
    return mix(salt + query_index.to(tl.uint32) * QUERY)


@triton.jit
def kept(salts, key_index, threshold):
    """Whether dropout keeps a probability; salts and key_index broadcast."""
    return mix(salts + key_index.to(tl.uint32) * KEY) >= threshold.to(tl.uint32)


@triton.jit
def stretches(low, full_low, full_high, high, BLOCK: tl.constexpr):
    """Borders of three loops in steps of BLOCK: with masks, without, and with masks again."""
    start = low + tl.cdiv(full_low - low, BLOCK) * BLOCK
    return low, start, start + tl.maximum(full_high - start, 0) // BLOCK * BLOCK, high
