"""How evenly attention's programs fill a GPU's multiprocessors, replayed at the recipes' layouts.

Each program takes as long as the blocks it loops over, and starts on the first multiprocessor that
is free, in the order of the launch. The use is the work done over that of busy multiprocessors; it
leaves out everything else that takes time.
"""

import heapq
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from emu3_kernels.attention_tile import KeyRanges
from emu3_kernels.attention_tile.splitting import MULTIPROCESSORS, Split, split
from emu3_kernels.ring_attention import RingPlan
from simulated_packs import simulated_packs

from emu3_megatron.context_parallel.dispatch import dispatch


class Layout(NamedTuple):
    """The tiles of each context parallel rank in a recipe, and the heads of a rank."""

    case: str
    ranks: list[list[KeyRanges]]
    heads: int
    kv_heads: int


def layouts(packs: bool = True) -> Iterator[Layout]:
    """Those of the published recipes at 8B: 32 query heads over 8 key heads, shared out by TP.

    Args:
        packs: the tiles of context parallel ranks, too, which take a second to plan.
    """
    yield Layout("5,120 one document, TP 1", [[documents(5120)]], 32, 8)
    yield Layout("stage 1: 5,120 one document, TP 4", [[documents(5120)]], 8, 2)
    yield Layout("stage 1: image 4,300 + text 820, TP 4", [[documents(4300, 820)]], 8, 2)
    yield Layout("preferences: pair of 8,700 + 8,700, TP 4", [[documents(8700, 8700)]], 8, 2)
    yield Layout("instruct: 16,523 + 16,245, TP 4", [[documents(16_523, 16_245)]], 8, 2)
    yield Layout("32,768 one document, TP 1", [[documents(32_768)]], 32, 8)
    if packs:
        for kind in ("mixed", "image", "dense", "video"):
            yield Layout(f"stage 2: {kind}, CP 8, TP 8", tiles_of_ranks(kind), 4, 1)


def documents(*lengths: int) -> KeyRanges:
    borders = [0, *np.cumsum(lengths).tolist()]
    rows = [(a, b, a, b, 1) for a, b in pairwise(borders)]
    return KeyRanges.of_segments(rows, borders[-1], borders[-1])


def tiles_of_ranks(kind: str, ranks: int = 8) -> list[list[KeyRanges]]:
    boundaries = simulated_packs(kind, number=1)[0]
    shares = list(torch.from_numpy(dispatch(boundaries, ranks)))
    plans = (RingPlan.build(shares, torch.from_numpy(boundaries), rank) for rank in range(ranks))
    return [
        [step.ranges for step in plan.steps if step.ranges is not None and step.ranges.pairs]
        for plan in plans
    ]


def forward_use(layout: Layout, block_m: int, block_n: int) -> float:
    """Of the forward pass and of dq: programs are blocks of queries by query heads."""

    def of_tile(ranges: KeyRanges) -> float:
        works = _blocks(ranges.first_q.numpy(), ranges.last_q.numpy(), block_m, block_n)
        return replay(np.repeat(works[ranges.heaviest_first(block_m).numpy()], layout.heads))

    return _of_the_worst_rank(layout, of_tile)


def dkdv_use(layout: Layout, block_m: int, block_n: int, shares: Split | None = None) -> float:
    """Of dk/dv: programs are blocks of keys by key heads, shared by query heads and queries."""
    heads, kv_heads = layout.heads, layout.kv_heads

    def of_tile(ranges: KeyRanges) -> float:
        head_parts, query_parts = shares or split(ranges, heads, kv_heads, block_m, block_n)
        first, last = (bounds.numpy() for bounds in ranges.by_key)
        order = ranges.heaviest_first(block_n, by_key=True).numpy()
        works = _blocks(first, last, block_n, block_m)[order]
        each = -(-works // query_parts)  # as triton_masks.query_part cuts
        parts = [np.clip(works - part * each, 0, each) for part in range(query_parts)]
        by_program = np.stack(parts, 1).repeat(head_parts * kv_heads, 1).reshape(-1)
        return replay(by_program * (heads // kv_heads // head_parts))

    return _of_the_worst_rank(layout, of_tile)


def _of_the_worst_rank(layout: Layout, of_tile: Callable[[KeyRanges], float]) -> float:
    """The use over all of a rank's tiles, one after the other."""
    return min(
        sum(tile.pairs for tile in tiles) / sum(tile.pairs / of_tile(tile) for tile in tiles)
        for tiles in layout.ranks
    )


def _blocks(first: np.ndarray, last: np.ndarray, block: int, other: int) -> np.ndarray:
    """For each block of rows how many blocks of the others it loops over."""
    starts = np.arange(0, len(first), block)
    ends = np.minimum(starts + block, len(first)) - 1
    return -(-np.maximum(last[ends] - first[starts], 0) // other)


def replay(works: np.ndarray, multiprocessors: int = MULTIPROCESSORS) -> float:
    """Work over multiprocessors times the time of the last to end."""
    free = [0] * multiprocessors
    for work in works.tolist():
        heapq.heapreplace(free, free[0] + work)
    return float(works.sum() / multiprocessors / max(free))


def rows() -> Iterator[dict[str, Any]]:
    """One for each layout: the use without and with the split, and the split."""
    from emu3_kernels.attention_tile.triton_tile import HALF

    forward, dq, dkdv = (HALF[name] for name in ("forward", "dq", "dkdv"))
    for layout in layouts():
        blocks = (dkdv.block_m, dkdv.block_n)
        splits = [
            (split(tile, layout.heads, layout.kv_heads, *blocks), tile.keys)
            for tiles in layout.ranks
            for tile in tiles
        ]
        yield {
            "case": f"use/{layout.case}",
            "implementation": "replay",
            "heads": layout.heads,
            "kv_heads": layout.kv_heads,
            "forward_use": forward_use(layout, forward.block_m, forward.block_n),
            "dq_use": forward_use(layout, dq.block_m, dq.block_n),
            "dkdv_use_unsplit": dkdv_use(layout, *blocks, Split(1, 1)),
            "dkdv_use": dkdv_use(layout, *blocks),
            "parts": max(shares.parts for shares, _ in splits),
            "parts_bytes": max(
                shares.parts * 2 * keys * layout.kv_heads * 128 * 4 * (shares.parts > 1)
                for shares, keys in splits
            ),
        }
