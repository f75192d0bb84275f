"""Data that is damaged between a run's starts is refused by name; the run's checkpoints stay.

What each file's reader refuses, in all its variants, is tested in ../data/test_store.py.
"""

import shutil
import struct

import pytest
from support.faults import latest, run_job

BIG = struct.pack("<i", 1 << 28)


def cut_the_tokens(folder):
    data = (folder / "shard.bin").read_bytes()
    (folder / "shard.bin").write_bytes(data[: len(data) // 2])
    return f"shard.bin: {len(data) // 2:,} bytes, expected {len(data):,}"


def cut_the_index(folder):
    data = (folder / "shard.idx").read_bytes()
    (folder / "shard.idx").write_bytes(data[:-8])
    return f"shard.idx: {len(data) - 8:,} bytes, expected {len(data):,}"


def change_the_dtype(folder):
    data = bytearray((folder / "shard.idx").read_bytes())
    data[17] = 8  # Megatron's code of uint16
    (folder / "shard.idx").write_bytes(data)
    return "shard.idx: version 1 with dtype code 8, expected version 1 with int32"


def change_an_id(folder):
    data = (folder / "shard.bin").read_bytes()
    (folder / "shard.bin").write_bytes(BIG + data[4:])
    return f"shard.bin: document 0 holds id {1 << 28}, the vocabulary has "


def remove_the_packs(folder):
    shutil.rmtree(folder / "tiny.pack")
    return "tiny.pack: no packs there"


@pytest.mark.parametrize(
    "damage", [cut_the_tokens, cut_the_index, change_the_dtype, change_an_id, remove_the_packs]
)
def test_a_run_whose_data_was_damaged_is_refused_in_one_line_and_keeps_its_checkpoint(
    damage, packs, recipe, untroubled, tmp_path
):
    folder = tmp_path / "data"
    shutil.copytree(packs.parent, folder)
    sources = {"sources": [{"pack": str(folder / "tiny.pack")}]}
    (end,) = run_job(recipe(data=sources, run={"stop_after": 2}))
    assert end.code == 0, end.said
    words = damage(folder)

    (end,) = run_job(recipe(data=sources))

    assert end.code == 2, end.said
    assert words in end.said.splitlines()[-1]
    assert latest(recipe().run.dir) == 2
