"""Checking shards and packs from the command line's side."""

import numpy as np
import pytest

from emu3_megatron.data.check import check
from emu3_megatron.data.shards.sidecar import shard_file
from emu3_megatron.errors import InputError


def test_a_shard_is_described(write_shard, make_text, vocabulary):
    prefix = write_shard([make_text(10), make_text(20)])

    assert check(prefix, vocabulary, deep=True) == f"{prefix}: 2 documents, 30 tokens"


def test_packs_are_described(make_packs, make_text, vocabulary):
    packs = make_packs([make_text(10)] * 4, 20)

    line = check(packs.path, vocabulary, deep=True)

    assert line == f"{packs.path}: 2 packs of 20 tokens from 1 shards"


def test_a_deep_check_of_packs_reads_their_shards(make_packs, make_text, vocabulary, tmp_path):
    packs = make_packs([make_text(10)])
    with shard_file(tmp_path / "train", "bin").open("r+b") as file:
        file.write(np.int32(1).tobytes())
    check(packs.path, vocabulary)

    with pytest.raises(InputError, match=r"train\.bin: not the content"):
        check(packs.path, vocabulary, deep=True)
