"""Checks the arguments of an attention tile, and orders dimensions as torch wants them."""

from dataclasses import dataclass

import torch
from emu3_kernels.attention_tile.dropout import Dropout
from emu3_kernels.attention_tile.ranges import KeyRanges


@dataclass(frozen=True, eq=False)
class Tile:
    """The arguments of `attention_tile`, which says what they are.

    Raises:
        ValueError: shapes that do not fit each other.
    """

    q_thd: torch.Tensor
    k_thd: torch.Tensor
    v_thd: torch.Tensor
    ranges: KeyRanges
    scale: float
    dropout: Dropout | None = None

    def __post_init__(self) -> None:
        q, k, v, ranges = self.q_thd, self.k_thd, self.v_thd, self.ranges
        if k.shape != v.shape or q.shape[2] != k.shape[2]:
            raise ValueError(f"q {[*q.shape]}, k {[*k.shape]}, v {[*v.shape]} do not fit")
        if q.shape[1] % k.shape[1]:
            raise ValueError(f"{q.shape[1]} heads cannot share {k.shape[1]} key heads equally")
        if (ranges.queries, ranges.keys) != (q.shape[0], k.shape[0]):
            raise ValueError(
                f"ranges are of {ranges.queries} queries x {ranges.keys} keys, "
                f"not {q.shape[0]} x {k.shape[0]}"
            )

    @property
    def inputs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys, values."""
        return self.q_thd, self.k_thd, self.v_thd

    def nothing_yet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """out and lse before the first tile, fp32 or wider."""
        wide = torch.promote_types(self.q_thd.dtype, torch.float32)
        tokens, heads, _ = self.q_thd.shape
        out_thd = self.q_thd.new_zeros(self.q_thd.shape, dtype=wide)
        return out_thd, out_thd.new_full((heads, tokens), -torch.inf)


def to_bhtd(t_thd: torch.Tensor) -> torch.Tensor:
    """[t, h, d] to the [1, h, t, d] of torch's attention functions."""
    return t_thd.transpose(0, 1)[None]


def from_bhtd(t_bhtd: torch.Tensor) -> torch.Tensor:
    """The reverse of `to_bhtd`."""
    return t_bhtd[0].transpose(0, 1)
