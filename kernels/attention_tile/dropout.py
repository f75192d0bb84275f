"""Attention dropout by a hash of global positions: the same on every parallel layout."""

from dataclasses import dataclass
from typing import TypeVar

import torch

Hash = TypeVar("Hash", int, torch.Tensor)

WORD = 0xFFFFFFFF
# Odd multipliers, from the golden ratio and murmur3: neighbours differ in all 32 bits.
HEAD, QUERY, KEY = 0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35


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
        """Hashes below it are dropped."""
        return round(self.p * 2**32)

    def keep(self, heads: int, queries: slice, keys: slice) -> torch.Tensor:
        """What is kept: bool [heads, queries, keys]."""
        query_q = self.query_index_t[queries].long()
        key_k = self.key_index_t[keys].long()
        head_h = torch.arange(self.first_head, self.first_head + heads, device=key_k.device)
        salt_h = _mix((self.key + head_h * HEAD) & WORD)
        row_hq = _mix((salt_h[:, None] + query_q * QUERY) & WORD)
        hash_hqk = _mix((row_hq[:, :, None] + key_k * KEY) & WORD)
        return hash_hqk >= self.threshold


def _mix(word: Hash) -> Hash:
    """murmur3's finalizer, on 32-bit words held in wider integers."""
    word = ((word ^ (word >> 16)) * 0x85EBCA6B) & WORD
    word = ((word ^ (word >> 13)) * 0xC2B2AE35) & WORD
    return word ^ (word >> 16)
