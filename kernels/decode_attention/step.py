"""Checks the arguments of a decode step's attention, and groups heads by the keys they share."""

from typing import NamedTuple

import torch


class Step(NamedTuple):
    """The arguments of `decode_attention`, which says what they are."""

    query_bwhd: torch.Tensor
    key_bkcd: torch.Tensor
    value_bkcd: torch.Tensor
    positions_bw: torch.Tensor
    scale: float
    longest: int | None = None

    def check(self) -> None:
        """ValueError unless shapes and types fit each other."""
        query, key, value, positions, _, longest = self
        rows, width, heads, dim = query.shape
        if key.shape != value.shape or key.shape[::3] != (rows, dim):
            raise ValueError(
                f"queries {[*query.shape]}, keys {[*key.shape]} and values {[*value.shape]} do not "
                "fit: needed are [b, w, h, d], [b, k, c, d] and [b, k, c, d]"
            )
        if heads % key.shape[1]:
            raise ValueError(f"{heads} heads cannot share {key.shape[1]} KV heads equally")
        if not query.dtype == key.dtype == value.dtype:
            raise ValueError(f"queries, keys, values are {query.dtype}, {key.dtype}, {value.dtype}")
        if positions.shape != (rows, width) or positions.is_floating_point():
            raise ValueError(
                f"positions are {positions.dtype} {[*positions.shape]}; "
                f"needed: integers {[rows, width]}"
            )
        if longest is not None and not 0 < longest <= key.shape[2]:
            raise ValueError(f"longest is {longest}; the capacity is {key.shape[2]}")

    @property
    def group(self) -> int:
        """How many query heads share a KV head."""
        return self.query_bwhd.shape[2] // self.key_bkcd.shape[1]

    @property
    def bound(self) -> int:
        """No query sees more keys."""
        return self.longest or self.key_bkcd.shape[2]

    def grouped_query(self) -> torch.Tensor:
        """[b, k, w * g, d]: the queries that share keys side by side."""
        rows, width, _, dim = self.query_bwhd.shape
        query_bwkgd = self.query_bwhd.reshape(rows, width, -1, self.group, dim)
        return query_bwkgd.transpose(1, 2).reshape(rows, -1, width * self.group, dim)

    def ungrouped(self, out_bknd: torch.Tensor) -> torch.Tensor:
        """The reverse of `grouped_query`."""
        rows, width, heads, dim = self.query_bwhd.shape
        out_bkwgd = out_bknd.reshape(rows, -1, width, self.group, dim)
        return out_bkwgd.transpose(1, 2).reshape(rows, width, heads, dim)

    def seen(self, rows: slice, length: int) -> torch.Tensor:
        """[rows, 1, w * g or 1, length], bool: which of the first keys each query sees."""
        positions_bw = self.positions_bw[rows]
        key_c = torch.arange(length, device=positions_bw.device)
        seen_bwc = key_c <= positions_bw[:, :, None]
        if positions_bw.shape[1] == 1:  # the same for all heads
            return seen_bwc[:, None]
        return seen_bwc[:, :, None].expand(-1, -1, self.group, -1).flatten(1, 2)[:, None]
