"""Attention dropout by a hash of global positions: the same on every parallel layout.

Each row of probabilities (a head and a query) draws a multiplier and an offset, each key has a
word of 32 mixed bits, and the hash of row and key is multiplier * word + offset modulo 2^32. This
is multiply-add hashing (Dietzfelbinger 1996): the values of a random row at two keys are
independent of each other. Rows and words are drawn once a call, so that an inner loop has one
multiplication and one comparison for each probability.
"""

from dataclasses import dataclass
from typing import TypeVar

import torch

Hash = TypeVar("Hash", int, torch.Tensor)

WORD = 0xFFFFFFFF
# Odd multipliers, from the golden ratio and murmur3: neighbours differ in all 32 bits.
HEAD, QUERY, OFFSET = 0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35


@dataclass(frozen=True, eq=False)
class Dropout:
    """Whether head h's query q keeps key k depends on (seed, h, q, k) alone, all global.

    Attributes:
        p: chance that a probability is dropped, in [0, 1); the others grow by 1 / (1 - p).
        seed: up to 64 bits; a different one for each layer and step.
        query_index_t: int [t], each local query's place in the whole sequence.
        key_index_t: int [t], each local key's.
        first_head: number of this call's head 0 among all heads (tensor parallelism).
    """

    p: float
    seed: int
    query_index_t: torch.Tensor
    key_index_t: torch.Tensor
    first_head: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.p < 1:
            raise ValueError(f"dropout: p is {self.p}, must be in [0, 1)")

    @property
    def key(self) -> int:
        """The seed in 32 bits."""
        return _mix(_mix(self.seed & WORD) ^ (self.seed >> 32 & WORD))

    @property
    def threshold(self) -> int:
        """Hashes below it are dropped; hashes are signed, from -2^31 to 2^31 - 1."""
        return min(round(self.p * 2**32), WORD) - 2**31

    def keep(self, heads: int, queries: slice, keys: slice) -> torch.Tensor:
        """What is kept: bool [heads, queries, keys]."""
        multiplier_hq, offset_hq = self.rows(heads, queries)
        word_k = _int32(_mix(self.key_index_t[keys].long() & WORD))
        return multiplier_hq[:, :, None] * word_k + offset_hq[:, :, None] >= self.threshold

    def rows(self, heads: int, queries: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Multiplier and offset of each row: int32 [heads, queries], which wrap around."""
        query_q = self.query_index_t[queries].long()
        head_h = torch.arange(self.first_head, self.first_head + heads, device=query_q.device)
        salt_h1 = _mix((self.key + head_h * HEAD) & WORD)[:, None]
        multiplier_hq = _mix((salt_h1 + query_q * QUERY) & WORD)
        offset_hq = _mix(((salt_h1 ^ WORD) + query_q * OFFSET) & WORD)
        return _int32(multiplier_hq), _int32(offset_hq)


def _mix(word: Hash) -> Hash:
    """murmur3's finalizer, on 32-bit words held in wider integers."""
    word = ((word ^ (word >> 16)) * 0x85EBCA6B) & WORD
    word = ((word ^ (word >> 13)) * 0xC2B2AE35) & WORD
    return word ^ (word >> 16)


def _int32(word: torch.Tensor) -> torch.Tensor:
    """The same 32 bits, signed."""
    return (word - (word >> 31 << 32)).int()
