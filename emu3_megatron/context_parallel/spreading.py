"""Spreads the blocks of a group of ranks evenly over its ranks.

Each of them sees the documents of the group, so it hardly matters to the exchange which one holds
which block: work alone decides. All groups take their steps together.
"""

import numpy as np

from emu3_megatron.context_parallel.blocks import Blocks

_ROUNDS = 20  # of swaps; few are needed


def spread(blocks: Blocks, held_gn: np.ndarray, parts: int, enough: int) -> np.ndarray:
    """Share each group's blocks out among its ranks.

    Args:
        held_gn: the blocks each group holds, ascending, [groups, blocks / groups].
        parts: ranks of a group.
        enough: stop when no rank has more work.

    Returns:
        The blocks each rank holds, ascending, int64 [groups x parts, blocks / ranks].
    """
    if parts == 1:
        return held_gn
    groups = len(held_gn)
    dealt_gnp = held_gn.reshape(groups, -1, parts).copy()
    dealt_gnp[:, 1::2] = dealt_gnp[:, 1::2, ::-1]  # to and fro
    held_gpn = dealt_gnp.transpose(0, 2, 1).copy()
    for _ in range(_ROUNDS):
        work_gpn = blocks.work[held_gpn]
        if work_gpn.sum(axis=2).max() <= enough or not _swap_in_pairs(held_gpn, work_gpn):
            break
    return np.sort(held_gpn.reshape(groups * parts, -1), axis=1)


def _swap_in_pairs(held_gpn: np.ndarray, work_gpn: np.ndarray) -> bool:
    """In each group the busiest and the idlest rank swap two blocks, the next two ranks, and so on.

    Returns:
        whether any pair came nearer to each other.
    """
    groups, parts, number = held_gpn.shape
    loads_gp = work_gpn.sum(axis=2)
    order_gp = loads_gp.argsort(axis=1, kind="stable")
    group_g1, half = np.arange(groups)[:, None], parts // 2
    idle_gh, busy_gh = order_gp[:, :half], order_gp[:, ::-1][:, :half]
    gap_gh = loads_gp[group_g1, busy_gh] - loads_gp[group_g1, idle_gh]
    moved_ghnn = work_gpn[group_g1, busy_gh][..., None] - work_gpn[group_g1, idle_gh][:, :, None]
    left_ghx = np.abs(gap_gh[..., None, None] - 2 * moved_ghnn).reshape(groups, half, -1)
    best_gh = left_ghx.argmin(axis=2)
    nearer_gh = np.take_along_axis(left_ghx, best_gh[..., None], axis=2)[..., 0] < gap_gh
    group, pair = np.nonzero(nearer_gh)
    given, taken = divmod(best_gh[group, pair], number)
    busy, idle = (group, busy_gh[group, pair], given), (group, idle_gh[group, pair], taken)
    held_gpn[busy], held_gpn[idle] = held_gpn[idle], held_gpn[busy]
    return bool(nearer_gh.any())
