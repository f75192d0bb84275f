"""`emu3 pack` of shards that stock Megatron wrote: whose vocabulary they have must be said."""

import re

import pytest
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from support.shards import write_by_megatron

from emu3_megatron.cli import main
from emu3_megatron.data.packing.pack_set import PackSet
from emu3_megatron.data.shards.sidecar import Sidecar
from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.data.shards.writer import adopt
from emu3_megatron.grammar import plain_text
from emu3_megatron.vocabulary import Vocabulary

TINY, EMU3 = Vocabulary.tiny(), Vocabulary.emu3()


@pytest.fixture
def stock(tmp_path):
    """Two texts of bytes, as megatron-core's own builder writes them."""
    texts = [plain_text(TINY, text) for text in ("one", "two")]
    return write_by_megatron(tmp_path / "stock", texts)


def pack(shard, *more):
    main(["pack", str(shard), "--out", f"{shard}.pack", "--context", "64", *more])


@pytest.fixture
def refused(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        assert exit.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


def test_a_shard_that_says_nothing_needs_the_model(stock, refused):
    for command in (["check", stock], ["pack", stock, "--out", f"{stock}.pack", "--context", 64]):
        line = refused(*command)

        assert re.search(r"stock: a shard without \.json says nothing of its vocab.* --model", line)
    assert Sidecar.read(stock) is None

    pack(stock, "--model", "emu3-tiny")

    assert Sidecar.read(stock).vocabulary == TINY.fingerprint()


def test_a_wrong_sidecar_is_made_anew_by_a_flag(stock, refused):
    adopt(TokenStore(stock, EMU3))  # as if somebody had named the wrong model
    before = Sidecar.read(stock)
    again = ["pack", stock, "--out", f"{stock}.pack", "--context", 64, "--model", "emu3-tiny"]
    assert re.search(r"another vocabulary .*emu3 pack --model --relabel$", refused(*again))

    pack(stock, "--model", "emu3-tiny", "--relabel")

    after = Sidecar.read(stock)
    assert (after.vocabulary, after.content) == (TINY.fingerprint(), before.content)
    assert len(PackSet(f"{stock}.pack", TINY)) == 1


def test_a_flag_for_a_wrong_sidecar_names_no_model_by_itself(stock, refused):
    adopt(TokenStore(stock, EMU3))

    line = refused("pack", stock, "--out", f"{stock}.pack", "--context", 64, "--relabel")

    assert line.startswith("emu3: --relabel: name the model")


def test_a_damaged_shard_is_not_relabelled(stock, refused):
    adopt(TokenStore(stock, EMU3))
    before = stock.with_suffix(".json").read_text(encoding="utf-8")
    data = bytearray(stock.with_suffix(".bin").read_bytes())
    data[4] ^= 1
    stock.with_suffix(".bin").write_bytes(data)
    again = ["pack", stock, "--out", f"{stock}.pack", "--context", 64, "--model", "emu3-tiny"]

    line = refused(*again, "--relabel")

    assert re.search(r"stock\.bin: not the content its \.json was written for", line)
    assert stock.with_suffix(".json").read_text(encoding="utf-8") == before


def test_shards_that_megatron_merged_are_their_documents_in_order(stock, tmp_path):
    other = write_by_megatron(tmp_path / "other", [plain_text(TINY, "three")])
    builder = IndexedDatasetBuilder(f"{tmp_path / 'merged'}.bin", multimodal=True)
    for prefix in (stock, other):
        builder.add_index(str(prefix))  # as Megatron-LM's tools/merge_datasets.py
    builder.finalize(f"{tmp_path / 'merged'}.idx")

    pack(tmp_path / "merged", "--model", "emu3-tiny")

    merged = TokenStore(tmp_path / "merged", TINY)
    texts = [TINY.decode(merged.read(i)[1:-1]) for i in range(len(merged))]
    assert texts == ["one", "two", "three"]
    assert not merged.has_context


def test_a_shard_that_a_shells_pattern_names_by_each_of_its_files_is_packed_once(stock, capsys):
    pack(stock, "--model", "emu3-tiny")
    once = capsys.readouterr().out
    files = [f"{stock}{suffix}" for suffix in (".bin", ".idx", ".json")]

    main(["pack", *map(str, files), "--out", f"{stock}.pack", "--context", "64"])

    assert capsys.readouterr().out == once
    assert "2 documents" in once


def test_packs_are_written_to_where_a_link_points(stock, tmp_path):
    (tmp_path / "elsewhere.pack").mkdir()
    (tmp_path / "stock.pack").symlink_to("elsewhere.pack")

    for _ in range(2):
        pack(stock, "--model", "emu3-tiny")

    assert (tmp_path / "stock.pack").is_symlink()
    assert (tmp_path / "elsewhere.pack" / "pack.json").is_file()


def test_a_seed_below_zero_is_refused(stock, refused):
    line = refused("pack", stock, "--out", f"{stock}.pack", "--context", 64, "--seed", -1)

    assert "--seed" in line
