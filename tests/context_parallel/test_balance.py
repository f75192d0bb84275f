"""The two figures of an order, by hand and against a mask."""

import numpy as np
import pytest
from balance import Balance

from emu3_megatron.context_parallel.blocks import Blocks


def test_by_hand():
    # Documents of 3 and 5 tokens; rank 0 sees all of the second, rank 1 holds what it sees.
    balance = Balance.of(np.array([0, 3, 8]), np.array([[3, 4, 6, 7], [0, 1, 2, 5]]))

    assert balance.work_c.tolist() == [1 + 2 + 4 + 5, 1 + 2 + 3 + 3]
    assert balance.keys_c.tolist() == [1, 2]
    assert balance.work_max_over_mean == pytest.approx(12 / 10.5)
    assert balance.exchange_fraction == 2 / 4


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_a_dense_mask_and_to_blocks(seed):
    rng = np.random.default_rng(seed)
    tokens, ranks, size = 96, 4, 4
    boundaries = np.append(0, np.append(np.sort(rng.choice(range(1, 96), 9, replace=False)), 96))
    held_cn = np.sort(rng.permutation(tokens // size).reshape(ranks, -1), axis=1)
    order_cs = (held_cn[:, :, None] * size + np.arange(size)).reshape(ranks, -1)
    document = np.repeat(np.arange(10), np.diff(boundaries))
    visible = np.tril(document[:, None] == document[None, :])

    balance = Balance.of(boundaries, order_cs)
    blocks = Blocks.of(boundaries, size)

    assert balance.work_c.tolist() == [visible[mine].sum() for mine in order_cs]
    needed = [visible[mine].any(axis=0).sum() - len(mine) for mine in order_cs]
    assert balance.keys_c.tolist() == needed
    assert np.array_equal(blocks.loads(held_cn), balance.work_c)
    assert np.array_equal(blocks.needs(held_cn), balance.keys_c)


def test_one_rank_exchanges_nothing():
    assert Balance.of(np.array([0, 4]), np.arange(4)[None]).exchange_fraction == 0
