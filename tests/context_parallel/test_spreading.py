"""Blocks of groups spread over their ranks: each keeps to its group, and work is even."""

import numpy as np
import pytest

from emu3_megatron.context_parallel.blocks import Blocks
from emu3_megatron.context_parallel.spreading import spread

BOUNDARIES = np.array([0, 700, 704, 1010, 1024])


def test_longer_blocks_are_those_of_the_pack():
    joined, longer = Blocks.of(BOUNDARIES, 8).joined(4), Blocks.of(BOUNDARIES, 32)

    assert vars(joined).keys() == vars(longer).keys()
    for name, values in vars(joined).items():
        assert np.array_equal(values, getattr(longer, name)), name


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_groups_keep_their_blocks_and_ranks_work_alike(parts):
    blocks = Blocks.of(BOUNDARIES, 8)
    held_gn = np.sort(np.random.default_rng(0).permutation(128).reshape(2, -1), axis=1)

    held_cn = spread(blocks, held_gn, parts, enough=0)

    assert held_cn.shape == (2 * parts, 64 // parts)
    assert (np.diff(held_cn, axis=1) > 0).all()
    assert np.array_equal(np.sort(held_cn.reshape(2, -1), axis=1), held_gn)
    loads_gp = blocks.loads(held_cn).reshape(2, parts)
    assert (loads_gp.max(axis=1) <= 1.01 * loads_gp.mean(axis=1)).all()


def test_it_stops_where_work_is_even_enough():
    blocks = Blocks.of(np.array([0, 64]), 4)

    held_cn = spread(blocks, np.arange(16)[None], parts=2, enough=blocks.work.sum())

    assert held_cn.tolist() == [[0, 3, 4, 7, 8, 11, 12, 15], [1, 2, 5, 6, 9, 10, 13, 14]]
