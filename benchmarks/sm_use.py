"""How evenly attention's programs fill a GPU's multiprocessors, replayed at the recipes' layouts.

Each program takes as long as the blocks it loops over, and starts on the first multiprocessor that
is free, in the order of the launch. The use is the work done over that of busy multiprocessors; it
leaves out everything else that takes time.
"""

import heapq
from collections.abc import Iterator
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
    """A rank's largest tile in a recipe: what it sees, and its heads."""

    case: str
    ranges: KeyRanges
    heads: int
    kv_heads: int


def layouts(packs: bool = True) -> Iterator[Layout]:
    """Those of the published recipes at 8B: 32 query heads over 8 key heads, shared out by TP.

    Args:
        packs: the tiles of context parallel ranks, too, which take a second to plan.
    """
    yield Layout("5,120 one document, TP 1", documents(5120), 32, 8)
    yield Layout("stage 1: 5,120 one document, TP 4", documents(5120), 8, 2)
    yield Layout("stage 1: image 4,300 + text 820, TP 4", documents(4300, 820), 8, 2)
    yield Layout("preferences: pair of 8,700 + 8,700, TP 4", documents(8700, 8700), 8, 2)
    yield Layout("instruct: 16,523 + 16,245, TP 4", documents(16_523, 16_245), 8, 2)
    yield Layout("32,768 one document, TP 1", documents(32_768), 32, 8)
    if packs:
        for kind in ("mixed", "image", "dense", "video"):
            yield Layout(f"stage 2: {kind}, CP 8, TP 8", largest_tile(kind), 4, 1)


def documents(*lengths: int) -> KeyRanges:
    borders = [0, *np.cumsum(lengths).tolist()]
    rows = [(a, b, a, b, 1) for a, b in pairwise(borders)]
    return KeyRanges.of_segments(rows, borders[-1], borders[-1])


def largest_tile(kind: str, ranks: int = 8) -> KeyRanges:
    """The tile with the most work among those of the first rank of a pack."""
    boundaries = simulated_packs(kind, number=1)[0]
    shares = list(torch.from_numpy(dispatch(boundaries, ranks)))
    plan = RingPlan.build(shares, torch.from_numpy(boundaries), 0)
    tiles = [step.ranges for step in plan.steps if step.ranges is not None]
    return max(tiles, key=lambda ranges: ranges.pairs)


def forward_use(layout: Layout, block_m: int, block_n: int) -> float:
    """Of the forward pass and of dq: programs are blocks of queries by query heads."""
    first, last = layout.ranges.first_q.numpy(), layout.ranges.last_q.numpy()
    works = _blocks(first, last, block_m, block_n)
    order = layout.ranges.heaviest_first(block_m).numpy()
    return replay(np.repeat(works[order], layout.heads))


def dkdv_use(layout: Layout, block_m: int, block_n: int, shares: Split | None = None) -> float:
    """Of dk/dv: programs are blocks of keys by key heads, shared by query heads and queries."""
    ranges = layout.ranges
    shares = shares or split(ranges, layout.heads, layout.kv_heads, block_m, block_n)
    first, last = (bounds.numpy() for bounds in ranges.by_key)
    works = _blocks(first, last, block_n, block_m)[ranges.heaviest_first(block_n, True).numpy()]
    each = -(-works // shares.query_parts)  # as triton_masks.query_part cuts
    parts = [np.clip(works - part * each, 0, each) for part in range(shares.query_parts)]
    heads = layout.heads // layout.kv_heads // shares.head_parts
    by_program = np.stack(parts, 1).repeat(shares.head_parts * layout.kv_heads, 1)
    return replay(by_program.reshape(-1) * heads)


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
        shares = split(layout.ranges, layout.heads, layout.kv_heads, *blocks)
        yield {
            "case": f"use/{layout.case}",
            "implementation": "replay",
            "heads": layout.heads,
            "kv_heads": layout.kv_heads,
            "forward_use": forward_use(layout, forward.block_m, forward.block_n),
            "dq_use": forward_use(layout, dq.block_m, dq.block_n),
            "dkdv_use_unsplit": dkdv_use(layout, *blocks, Split(1, 1)),
            "dkdv_use": dkdv_use(layout, *blocks),
            "head_parts": shares.head_parts,
            "query_parts": shares.query_parts,
            "parts_bytes": 0 if shares.parts == 1
            else shares.parts * 2 * layout.ranges.keys * layout.kv_heads * 128 * 4,
        }  # fmt: skip
