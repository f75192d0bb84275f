"""More shards than a process may hold files open."""

import hashlib
import json
import os
import resource
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.faults import events, run_job
from support.shards import write_documents
from support.tiny import CONTEXT, VOCABULARY, tiny_recipe

from emu3_megatron import grammar
from emu3_megatron.data.check import check
from emu3_megatron.data.packing.packs import pack_shards
from emu3_megatron.data.shards.sidecar import shard_file


def make_shards(folder: Path, count: int) -> list[Path]:
    """Shards of one document each, which differ in two tokens."""
    document = grammar.plain_text(VOCABULARY, "number 0000")
    first = write_documents(folder / "first", VOCABULARY, [document])
    data, index, sidecar = (shard_file(first, kind).read_bytes() for kind in ("bin", "idx", "json"))
    tokens, about = np.frombuffer(data, np.int32).copy(), json.loads(sidecar)
    for number in range(count):
        tokens[2:4] = np.divmod(number, 256)
        about["content"] = hashlib.sha256(tokens.tobytes() + index).hexdigest()
        os.link(shard_file(first, "idx"), folder / f"{number}.idx")
        (folder / f"{number}.bin").write_bytes(tokens.tobytes())
        (folder / f"{number}.json").write_text(json.dumps(about), encoding="utf-8")
    return [folder / f"{number}" for number in range(count)]


def pack_and_check(shards: list[Path], pack: Path, limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    pack_shards(shards, pack, CONTEXT, vocabulary=VOCABULARY)
    check(pack, VOCABULARY)


@pytest.mark.parametrize(
    ("count", "limit"), [(400, 256), pytest.param(5_000, 1_024, marks=pytest.mark.slow)]
)
def test_more_shards_than_open_files_are_packed_checked_and_trained_on(tmp_path, count, limit):
    shards, pack = make_shards(tmp_path, count), tmp_path / "many.pack"
    recipe = tiny_recipe(pack, tmp_path / "run", run={"steps": 2}, data={"workers": 1})
    (end,) = run_job(recipe, fault=partial(pack_and_check, shards, pack, limit))

    assert end.code == 0, end.said
    assert events(recipe.run.dir, "durable")
