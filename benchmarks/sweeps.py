"""Launch shapes that the sweeps try, about twelve a kernel, and the problems they are tried on.

`make gpu` compiles all of them beforehand; what does not fit the chip has a reason for a time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from emu3_kernels.attention_tile import triton_tile
from emu3_kernels.linear_cross_entropy import triton_rows

# Queries and keys of a block, warps, blocks loaded ahead.
ATTENTION = {
    "forward": [
        (128, 64, 8, 3), (128, 64, 8, 2), (128, 64, 4, 3), (128, 64, 8, 4), (128, 128, 8, 2),
        (128, 128, 8, 3), (64, 64, 4, 3), (64, 64, 4, 2), (64, 128, 4, 2), (128, 32, 8, 4),
        (64, 64, 8, 3), (64, 128, 8, 3),
    ],
    "dq": [
        (128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 4, 2), (128, 32, 8, 2), (128, 32, 8, 3),
        (128, 128, 8, 1), (128, 128, 8, 2), (64, 64, 4, 2), (64, 64, 4, 3), (64, 128, 4, 2),
        (64, 128, 8, 2), (64, 64, 8, 2),
    ],
    "dkdv": [
        (32, 128, 8, 3), (32, 128, 8, 2), (32, 128, 4, 3), (64, 128, 8, 2), (64, 128, 8, 3),
        (64, 128, 4, 2), (64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 8, 2), (32, 64, 4, 3),
        (128, 64, 8, 2), (128, 128, 8, 1),
    ],
}  # fmt: skip
# Columns of a block, warps.
ROWS = [
    (4096, 8), (4096, 4), (4096, 16), (8192, 8), (8192, 4), (8192, 16), (2048, 4), (2048, 8),
    (2048, 16), (1024, 4), (16384, 8), (16384, 16),
]  # fmt: skip
QUICK = 2  # of each kernel in a dry run


class Heads(NamedTuple):
    """A rank's query heads, the key heads that they share, and the chance of dropout."""

    heads: int
    kv_heads: int
    dropout: float

    def __str__(self) -> str:
        return f"{self.heads}/{self.kv_heads}{', dropout' if self.dropout else ''}"


# Tensor parallelism 4 with dropout as in stage 1, 8 as in stage 2, and the whole model's heads.
HEADS = [Heads(8, 2, 0.1), Heads(4, 1, 0.1), Heads(32, 8, 0.0)]
SWEPT = [HEADS[0], HEADS[2]]
VOCABULARY = 184_622


@contextmanager
def attention_launch(kernel: str, launch: tuple[int, int, int, int]) -> Iterator[None]:
    """One kernel with another launch shape."""
    before = triton_tile.HALF[kernel]
    triton_tile.HALF[kernel] = triton_tile.Launch(*launch)
    try:
        yield
    finally:
        triton_tile.HALF[kernel] = before


@contextmanager
def rows_launch(block: int, warps: int) -> Iterator[None]:
    """The row passes with another block and other warps."""
    before = triton_rows.BLOCK, triton_rows.WARPS
    triton_rows.BLOCK, triton_rows.WARPS = block, warps
    try:
        yield
    finally:
        triton_rows.BLOCK, triton_rows.WARPS = before
