"""Swaps two blocks between two ranks at a time, until no rank works longer than the others."""

import numpy as np

from emu3_megatron.context_parallel.blocks import Blocks

# How much a rank's surplus, in shares of a rank, weighs against blocks of keys to be fetched.
_WORK_OVER_KEYS = 200


def swap(blocks: Blocks, held_cn: np.ndarray, enough: int, limit: int) -> np.ndarray:
    """Swap blocks of the busiest rank for blocks of others, the best swap first.

    Args:
        held_cn: the blocks each rank holds, [ranks, blocks / ranks].
        enough: stop when no rank has more work.
        limit: swaps at most.

    Returns:
        The blocks each rank holds then, ascending.
    """
    held_cn = held_cn.copy()
    for _ in range(limit):
        loads = blocks.loads(held_cn)
        busiest = int(loads.argmax())
        if loads[busiest] <= enough or not _swap_once(blocks, held_cn, loads, busiest, enough):
            break
    return np.sort(held_cn, axis=1)


def _swap_once(
    blocks: Blocks, held_cn: np.ndarray, loads: np.ndarray, busiest: int, enough: int
) -> bool:
    """Do the best swap that makes the busiest rank less busy, and no other as busy, if any."""
    work_cn = blocks.work[held_cn]
    given_nc1 = work_cn[busiest][:, None, None] - work_cn
    loads_nc1 = np.maximum(loads[busiest] - given_nc1, loads[:, None] + given_nc1)
    keys_ncn = _further_keys(blocks, held_cn, busiest)
    weight = blocks.work_a_token * held_cn.shape[1]
    score_ncn = _WORK_OVER_KEYS * np.maximum(loads_nc1, enough) + weight * keys_ncn
    score_ncn[loads_nc1 >= loads[busiest]] = np.iinfo(np.int64).max
    mine, rank, theirs = np.unravel_index(score_ncn.argmin(), score_ncn.shape)
    if loads_nc1[mine, rank, theirs] >= loads[busiest]:
        return False
    held_cn[busiest, mine], held_cn[rank, theirs] = held_cn[rank, theirs], held_cn[busiest, mine]
    return True


def _further_keys(blocks: Blocks, held_cn: np.ndarray, busiest: int) -> np.ndarray:
    """Tokens that both ranks must see besides, for each swap, [n, ranks, n].

    What they need no longer is not counted: it is cheap to know only for the last of a document.
    """
    ranks = len(held_cn)
    seen = np.zeros((ranks, blocks.document[-1] + 1), np.int64)
    seen[:, blocks.document] = blocks.start
    np.maximum.at(seen, (np.arange(ranks)[:, None], blocks.document[held_cn]), blocks.end[held_cn])
    mine_n = held_cn[busiest]
    for_them_nc = blocks.end[mine_n][:, None] - seen[:, blocks.document[mine_n]].T
    for_me_cn = blocks.end[held_cn] - seen[busiest][blocks.document[held_cn]]
    return np.maximum(for_them_nc, 0)[:, :, None] + np.maximum(for_me_cn, 0)
