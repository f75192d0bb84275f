"""Checks the arguments of a decode step's attention, and groups heads by the keys they share."""

import torch
from emu3_kernels.decode_attention.positions import Positions


class Step:
    """The arguments of `decode_attention`, which says what they are, and their sizes.

    Attributes:
        group: how many query heads share a KV head.
        bound: no query sees more keys.

    Raises:
        ValueError: shapes or types that do not fit each other.
    """

    def __init__(
        self,
        query_bwhd: torch.Tensor,
        key_bkcd: torch.Tensor,
        value_bkcd: torch.Tensor,
        positions: Positions,
        scale: float,
        longest: int | None = None,
    ):
        self.query_bwhd, self.key_bkcd, self.value_bkcd = query_bwhd, key_bkcd, value_bkcd
        self.positions, self.scale = positions, scale
        self.rows, self.width, self.heads, self.dim = query_bwhd.shape
        _, self.kv_heads, capacity, _ = key_bkcd.shape
        self.group = self.heads // self.kv_heads
        self.bound = capacity if longest is None else longest
        self._check(capacity)

    def _check(self, capacity: int) -> None:
        query, key, value = self.query_bwhd, self.key_bkcd, self.value_bkcd
        if key.shape != value.shape or key.shape != (self.rows, self.kv_heads, capacity, self.dim):
            raise ValueError(
                f"queries {[*query.shape]}, keys {[*key.shape]} and values {[*value.shape]} do not "
                "fit: needed are [b, w, h, d], [b, k, c, d] and [b, k, c, d]"
            )
        if self.heads != self.group * self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} KV heads equally")
        if not query.dtype == key.dtype == value.dtype:
            raise ValueError(f"queries, keys, values are {query.dtype}, {key.dtype}, {value.dtype}")
        positions_bw = self.positions.positions_bw
        if positions_bw.shape != (self.rows, self.width) or positions_bw.is_floating_point():
            raise ValueError(
                f"positions are {positions_bw.dtype} {[*positions_bw.shape]}; "
                f"needed: integers {[self.rows, self.width]}"
            )
        if not 0 < self.bound <= capacity:
            raise ValueError(f"longest is {self.bound}; the capacity is {capacity}")

    def grouped_query(self) -> torch.Tensor:
        """[b, k, w * g, d]: the queries that share keys side by side."""
        query = self.query_bwhd
        if self.width > 1:
            query = query.view(self.rows, self.width, self.kv_heads, -1, self.dim).transpose(1, 2)
        return query.reshape(self.rows, self.kv_heads, self.width * self.group, self.dim)

    def ungrouped(self, out_bknd: torch.Tensor) -> torch.Tensor:
        """The reverse of `grouped_query`."""
        if self.width > 1:
            out_bknd = out_bknd.unflatten(2, (self.width, self.group)).transpose(1, 2)
        return out_bknd.reshape(self.rows, self.width, self.heads, self.dim)
