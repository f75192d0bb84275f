"""Fills ranks one after another with heavy blocks of one document and light ones to match."""

import numpy as np

from emu3_megatron.context_parallel.blocks import Blocks

# How much a block of work missed weighs against a block of keys to be fetched.
_WORK_OVER_KEYS = 30
_EXCHANGES = 3  # exchanges of a light block for a better one, for each rank


def peel(blocks: Blocks, ranks: int) -> np.ndarray:
    """Give every rank an equal number of blocks and nearly equal work.

    The heaviest block left ends the longest document left. Its rank must see all of that document,
    so it takes more of it: heavy blocks while light ones can still make up for them. Then come
    light ones, from there if they fit, or else from where few keys are to be seen.

    Returns:
        The blocks each rank holds, ascending, int64 [ranks, blocks / ranks].
    """
    left = np.argsort(-blocks.work, kind="stable")
    number = len(left) // ranks
    keys = (blocks.end - blocks.start) * blocks.work_a_token
    held = []
    for rank in range(ranks - 1):
        work = blocks.work[left]
        share = int(work.sum()) // (ranks - rank)
        same_document = blocks.document[left] == blocks.document[left[0]]
        heavy = np.flatnonzero(same_document)[:number]
        heavy = heavy[: _heavy_that_fit(work, heavy, number, share)]
        others = np.delete(np.arange(len(left)), heavy)
        cost = np.where(same_document, 0, keys[left])[others]
        missing = share - int(work[heavy].sum())
        light = others[_light(work[others], cost, number - len(heavy), missing)]
        takes = np.append(heavy, light)
        held.append(left[takes])
        left = np.delete(left, takes)
    return np.sort([*held, left], axis=1)


def _heavy_that_fit(work: np.ndarray, heavy: np.ndarray, number: int, share: int) -> int:
    """How many heavy blocks, with the lightest of all beside them, stay within the share."""
    lightest = np.append(0, np.cumsum(work[::-1][: number - 1]))
    least = np.cumsum(work[heavy]) + lightest[number - 1 - np.arange(len(heavy))]
    return max(1, int((least <= share).sum()))


def _light(work: np.ndarray, cost: np.ndarray, number: int, missing: int) -> np.ndarray:
    """Indices of `number` blocks that have the missing work together and are cheap to see."""
    if not number:
        return np.empty(0, np.int64)
    score = cost + _WORK_OVER_KEYS * np.abs(work - missing // number)
    ranked = np.argsort(score, kind="stable")
    for _ in range(_EXCHANGES):
        work_r, cost_r = work[ranked], cost[ranked]
        short = missing - int(work_r[:number].sum())
        miss = np.abs(short + work_r[:number, None] - work_r[number:])
        score = _WORK_OVER_KEYS * miss + cost_r[number:] - cost_r[:number, None]
        taken, other = divmod(int(score.argmin()), len(work) - number)
        if score[taken, other] >= _WORK_OVER_KEYS * abs(short):
            break
        swapped = [taken, number + other]
        ranked[swapped] = ranked[swapped[::-1]]
    return ranked[:number]
