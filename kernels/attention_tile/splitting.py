"""How many programs share a block of keys in dk/dv, so that all multiprocessors have work."""

from typing import NamedTuple

from emu3_kernels.attention_tile.ranges import KeyRanges

MULTIPROCESSORS = 132  # of an H100 or H200
LARGEST = 0.5  # of one program: its work over the mean of a multiprocessor
LEAST_BLOCKS = 4  # of queries in a part: shorter ones cost more to add up than they save
MOST_QUERY_PARTS = 8


class Split(NamedTuple):
    """Programs that share a block of keys: each has some query heads and some of the queries.

    They write parts of dk and dv, which are added up in a fixed order. (1, 1) needs no parts.
    """

    head_parts: int
    query_parts: int

    @property
    def parts(self) -> int:
        return self.head_parts * self.query_parts


def split(
    ranges: KeyRanges,
    heads: int,
    kv_heads: int,
    block_m: int,
    block_n: int,
    multiprocessors: int = MULTIPROCESSORS,
) -> Split:
    """The smallest split whose largest program is short beside all the work.

    Programs are started heaviest first, so the time in which some multiprocessors have nothing
    left to do is at most that of one program.

    Args:
        ranges: of the tile.
        heads: query heads.
        kv_heads: key heads; each serves heads / kv_heads query heads.
        block_m: queries of a block.
        block_n: keys of a block.
        multiprocessors: of the GPU.
    """
    group = heads // kv_heads
    largest = ranges.most_queries * block_n * group
    share = LARGEST * ranges.pairs * heads / multiprocessors
    needed = largest / share if share else 1.0
    head_parts = next((n for n in range(1, group) if group % n == 0 and n >= needed), group)
    most = min(MOST_QUERY_PARTS, ranges.most_queries // (block_m * LEAST_BLOCKS))
    query_parts = next((n for n in (1, 2, 4) if n * head_parts >= needed), MOST_QUERY_PARTS)
    return Split(head_parts, max(1, min(query_parts, most)))
