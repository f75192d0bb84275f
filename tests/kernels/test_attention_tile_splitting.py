"""Programs that share a block of keys: enough for all multiprocessors, and the same sums."""

import pytest
import sm_use
import torch
from emu3_kernels.attention_tile import KeyRanges, triton_tile
from emu3_kernels.attention_tile.splitting import Split, split
from support.attention_case import Case, assert_same, documents

RAGGED = (documents(0, 3, 90, 101), 101, 101)


@pytest.mark.parametrize("layout", list(sm_use.layouts()), ids=lambda layout: layout.case)
def test_the_recipes_keep_the_multiprocessors_busy(layout):
    launch = triton_tile.HALF["dkdv"]
    assert sm_use.dkdv_use(layout, launch.block_m, launch.block_n) >= 0.8


def test_without_a_split_stage_1_would_use_a_third_of_the_gpu():
    layout = next(one for one in sm_use.layouts(packs=False) if one.case.startswith("stage 1"))
    assert sm_use.dkdv_use(layout, 32, 128, Split(1, 1)) < 0.35


def test_heads_are_split_before_queries_and_long_tiles_not_at_all():
    shares = lambda tokens, heads, kv: split(sm_use.documents(tokens), heads, kv, 32, 128)

    assert shares(32_768, 32, 8) == (1, 1)
    assert shares(5120, 8, 2) == (4, 2)
    assert shares(5120, 2, 2) == (1, 8)
    assert shares(100, 8, 2) == (4, 1)  # too few queries to share
    assert split(KeyRanges.of_segments([], 5, 3), 8, 2, 32, 128) == (1, 1)


@pytest.mark.parametrize(
    "segments",
    [
        [(0, 64, 0, 64, 1), (64, 128, 0, 128, 1), (128, 150, 90, 150, 1)],
        [(3, 20, 0, 17, 1), (70, 75, 40, 80, 0)],
        [(0, 90, 0, 20, 1)],
        [],
    ],
)
def test_pairs_and_the_most_queries_of_a_key_are_those_of_the_mask(segments):
    ranges = KeyRanges.of_segments(segments, 150, 150)
    first, last = ranges.by_key

    assert ranges.pairs == (ranges.last_q - ranges.first_q).clamp(min=0).sum()
    most = int((last - first).clamp(min=0).max())
    assert most <= ranges.most_queries <= 2 * most


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("shares", [(4, 1), (2, 3)])
def test_parts_add_up_to_the_gradients(shares, add, monkeypatch):
    monkeypatch.setattr(triton_tile, "split", lambda *arguments: Split(*shares))
    case = Case.draw(RAGGED, "triton", heads=4, kv_heads=1)
    out, lse = case.attend("triton")

    find = case.gradients if add else case.gradients_alone
    first, second = (find("triton", out, lse) for _ in range(2))

    assert_same(first, case.expected()[2:])
    assert all(map(torch.equal, first, second))


def test_parts_are_added_to_what_was_there(monkeypatch):
    monkeypatch.setattr(triton_tile, "split", lambda *arguments: Split(2, 2))
    case = Case.draw(RAGGED, "triton", heads=4, kv_heads=1)
    out, lse = case.attend("triton")
    gradients = [torch.ones_like(t) for t in (case.q, case.k, case.v)]

    case.add_gradients("triton", out, lse, gradients)

    assert_same([gradient - 1 for gradient in gradients], case.expected()[2:])
