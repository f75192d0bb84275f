"""Messages on paths say relative to what, and where something was expected."""

import shutil

import pytest
from support.processes import run_processes
from support.steps import losses
from support.tiny import VOCABULARY, make_packs, tiny_recipe

from emu3_megatron.cli.sampling import Checkpoint
from emu3_megatron.data.packing.pack_set import PackSet
from emu3_megatron.errors import InputError


def test_packs_that_are_not_there_are_said_to_be_sought_from_this_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(InputError, match=rf"none\.pack: no packs there, seen from {tmp_path};"):
        PackSet("none.pack", VOCABULARY)


def test_packs_that_were_moved_alone_name_the_place_of_their_shard(tmp_path):
    packs = make_packs(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(packs, tmp_path / "elsewhere")

    with pytest.raises(InputError, match=rf"expected at {tmp_path}/elsewhere/shard, which is "):
        PackSet(moved, VOCABULARY)


def test_an_imported_run_finds_its_own_tokenizer_by_whichever_folder(tmp_path):
    run = tmp_path / "run"
    recipe = tiny_recipe(make_packs(tmp_path), run)
    run_processes(losses, 1, recipe, 1, None, run / "checkpoints")
    (run / "tokenizer").mkdir()
    (run / "tokenizer" / "config.json").write_text("{}", encoding="utf-8")

    for named in (run, run / "checkpoints", run / "checkpoints" / "step-00000001"):
        assert Checkpoint.read(named).tokenizer_folder(None).resolve() == run / "tokenizer"
