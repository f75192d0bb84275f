"""Chooses the order of a pack's tokens over context parallel ranks, for even work."""

from collections.abc import Iterator, Sequence

import numpy as np

from emu3_megatron.context_parallel.blocks import Blocks
from emu3_megatron.context_parallel.peeling import peel
from emu3_megatron.context_parallel.spreading import spread
from emu3_megatron.context_parallel.swaps import swap
from emu3_megatron.errors import InputError

_BLOCK = 2048  # tokens; longer ones balance worse, shorter ones scatter documents over the ranks
_LEAST_A_RANK = 8  # blocks
_MOST_BLOCKS = 1024  # of a pack: the time to solve grows with them
_MOST_GROUPS = 8  # of ranks, that blocks are solved for


def dispatch(boundaries: Sequence[int] | np.ndarray, context_size: int) -> np.ndarray:
    """Share out a pack: equal numbers of tokens, even attention work, few keys to exchange.

    Attention is causal inside each segment. Work is counted in pairs of a query and a key; the
    busiest rank may have 2% more than the mean. Among such orders the one is chosen whose worst
    rank needs the fewest keys of others. docs/context-parallel.md says how.

    Args:
        boundaries: where the pack's segments begin, and its end, ascending from 0,
            [segments + 1]. Padding is a segment.
        context_size: context parallel ranks.

    Returns:
        int64 [context_size, s / context_size]: indices into the pack by rank, ascending in each.

    Raises:
        InputError: the pack does not divide among the ranks.
    """
    boundaries = np.asarray(boundaries, np.int64)
    tokens = int(boundaries[-1])
    if tokens % context_size:
        raise InputError(
            f"a pack of {tokens:,} tokens does not divide among {context_size} context parallel "
            f"ranks; make data.context a multiple of {context_size}"
        )
    if context_size == 1:
        return np.arange(tokens)[None]
    blocks, held_cn = _solve(boundaries, context_size)
    first_cn1 = held_cn[:, :, None] * blocks.size
    return (first_cn1 + np.arange(blocks.size)).reshape(context_size, -1)


def _solve(boundaries: np.ndarray, ranks: int) -> tuple[Blocks, np.ndarray]:
    """Blocks of the pack, and who holds them."""
    blocks = _cut(boundaries, ranks)
    orders = _orders(blocks, ranks)
    return blocks, min(orders, key=lambda held_cn: _cost(blocks, held_cn))


def _cut(boundaries: np.ndarray, ranks: int) -> Blocks:
    """The longest blocks of which none is more than half of a rank's work, if there are any."""
    for size in _block_sizes(int(boundaries[-1]) // ranks, ranks):
        blocks = Blocks.of(boundaries, size)
        if 2 * ranks * blocks.work.max() <= blocks.work.sum():
            break
    return blocks


def _block_sizes(share: int, ranks: int) -> list[int]:
    """Divisors of a rank's tokens, longest first, each at most half of the one before.

    A share without a suitable divisor is cut into as many blocks as it can, at worst one. An even
    share is cut into an even number: zigzag needs halves.
    """
    most = max(_LEAST_A_RANK, _MOST_BLOCKS // ranks)
    step = 1 if share % 2 else 2
    counts = [count for count in range(step, most + 1, step) if share % count == 0]
    fine = [count for count in counts if count >= _LEAST_A_RANK and share // count <= _BLOCK]
    chosen = (fine or counts[-1:])[:1]
    for count in fine:
        if count >= 2 * chosen[-1]:
            chosen.append(count)
    return [share // count for count in chosen]


def _orders(blocks: Blocks, ranks: int) -> Iterator[np.ndarray]:
    """Candidates, blocks by rank, until one is even; those that exchange least come first."""
    enough = _allowed(blocks, ranks, percent=1)
    balanced = False
    for held_cn in _plain_orders(len(blocks.work), ranks):
        if blocks.loads(held_cn).max() <= _allowed(blocks, ranks, percent=25):
            held_cn = swap(blocks, held_cn, enough, limit=8)
            balanced |= blocks.loads(held_cn).max() <= enough
        yield held_cn
    for groups in range(_MOST_GROUPS, 0, -1):
        if ranks % groups == 0 and not balanced:
            held_cn = _by_groups(blocks, groups, ranks)
            balanced = blocks.loads(held_cn).max() <= _allowed(blocks, ranks, percent=2)
            yield held_cn


def _plain_orders(number: int, ranks: int) -> Iterator[np.ndarray]:
    """Contiguous and, where the blocks divide, zigzag: a chunk from the front and its mirror."""
    yield np.arange(number).reshape(ranks, -1)
    if number % (2 * ranks) == 0:
        chunks = np.arange(number).reshape(2 * ranks, -1)
        yield np.concatenate([chunks[:ranks], chunks[ranks:][::-1]], axis=1)


def _by_groups(blocks: Blocks, groups: int, ranks: int) -> np.ndarray:
    """Peeled for equal groups of ranks, in longer blocks, and then spread inside each group.

    That a rank sees what its group sees costs little beside the time it takes to peel for many.
    """
    parts = ranks // groups
    joined = max(n for n in range(1, parts + 1) if parts % n == 0 and n * blocks.size <= _BLOCK)
    longer = blocks.joined(joined)
    enough = _allowed(longer, groups, percent=1)
    held_gm = swap(longer, peel(longer, groups), enough, limit=8 * groups)
    held_gn = (held_gm[:, :, None] * joined + np.arange(joined)).reshape(groups, -1)
    return spread(blocks, held_gn, parts, _allowed(blocks, ranks, percent=1))


def _allowed(blocks: Blocks, ranks: int, percent: int) -> int:
    """The mean work of a rank and some percent."""
    return int(blocks.work.sum()) * (100 + percent) // (100 * ranks)


def _cost(blocks: Blocks, held_cn: np.ndarray) -> tuple[int, int, int]:
    """Surplus work beyond the 2%, then keys that the worst rank and all ranks need."""
    loads, needs = blocks.loads(held_cn), blocks.needs(held_cn)
    allowed = _allowed(blocks, len(held_cn), percent=2)
    return max(int(loads.max()), allowed), int(needs.max()), int(needs.sum())
