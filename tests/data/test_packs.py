"""Pack folders: what they hold, what they refuse, and documents longer than a pack."""

import json
import pickle

import numpy as np
import pytest

from emu3_megatron.data.packing.packs import PackSet, pack_shards
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import understanding


def held_tokens(packs):
    """The tokens of each document of the first shard, put together from its pieces."""
    pieces = sorted(
        (piece for pack in range(len(packs)) for piece in packs.pieces(pack)),
        key=lambda piece: (piece.document, piece.start),
    )
    documents = {}
    for store, document, start, length in pieces:
        documents.setdefault(document, []).append(store.read(document, start, length))
    return [np.concatenate(documents[i]).tolist() for i in sorted(documents)]


def test_packs_hold_every_document(make_packs, make_image, make_text):
    documents = [make_image(), make_text(10), make_text(30), make_image("a dog")]

    packs = make_packs(documents, 64)

    assert held_tokens(packs) == [document.tokens.tolist() for document in documents]
    packs.check_all()


def test_packs_span_shards(write_shard, make_text, tmp_path, vocabulary):
    prefixes = [write_shard([make_text(10)] * 2, name) for name in ("a", "b")]
    report = pack_shards(prefixes, tmp_path / "ab.pack", 40, vocabulary=vocabulary)

    (pieces,) = [PackSet(tmp_path / "ab.pack", vocabulary).pieces(0)]
    found = sorted((piece.store.prefix.name, piece.document) for piece in pieces)
    assert found == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert (report.packs, report.documents, report.fill, report.cuts) == (1, 4, 1.0, 0)


def test_long_text_is_cut(make_packs, make_text):
    packs = make_packs([make_text(150)], 64)

    assert sorted(piece.length for i in range(3) for piece in packs.pieces(i)) == [22, 64, 64]
    packs.check_all()


def test_long_caption_is_cut_so_that_the_image_keeps_its_end(make_packs, make_image):
    image = make_image("a" * 50)  # BOS and 50 bytes, 22 tokens of image, EOS

    packs = make_packs([image], 64)

    pieces = sorted(packs.pieces(0) + packs.pieces(1), key=lambda piece: piece.start)
    assert [(piece.start, piece.length) for piece in pieces] == [(0, 10), (10, 64)]


def test_no_image_is_cut(make_packs, make_image, vocabulary):
    rng = np.random.default_rng(0)
    documents = [make_image("a" * int(n)) for n in rng.integers(0, 200, 50)]
    documents += [
        understanding(vocabulary, rng.integers(0, 512, (3, 4)), "b" * int(n))
        for n in rng.integers(0, 200, 50)
    ]

    packs = make_packs(documents, 64)

    assert held_tokens(packs) == [document.tokens.tolist() for document in documents]
    for piece in (piece for pack in range(len(packs)) for piece in packs.pieces(pack)):
        tokens = piece.store.read(*piece[1:])
        begins = np.flatnonzero(tokens == vocabulary.vision_start)
        ends = np.flatnonzero(tokens == vocabulary.vision_end)
        assert len(begins) == len(ends) == np.sum(begins < ends)


def test_an_image_longer_than_the_context_is_named(make_packs, make_image, make_text):
    with pytest.raises(InputError, match=r"train: document 1 \(\d+ tokens\).*context is 16"):
        make_packs([make_text(10), make_image()], 16)


def test_the_same_seed_makes_the_same_packs(make_packs, make_text, tmp_path):
    documents = [make_text(10)] * 30
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_packs(documents, 40, name, seed=seed)

    a, b, c = (np.load(tmp_path / f"{name}.pack/documents.npy").tolist() for name in "abc")
    assert a == b
    assert a != c


def test_packs_made_from_other_shards_are_refused(
    make_packs, write_shard, make_text, tmp_path, vocabulary
):
    make_packs([make_text(10)])
    write_shard([make_text(11)], "train")

    with pytest.raises(InputError, match=r"train\.pack: made from other shards .*emu3 pack again"):
        PackSet(tmp_path / "train.pack", vocabulary)


def test_packs_move_with_their_shards(make_packs, make_text, tmp_path, vocabulary):
    make_packs([make_text(10)])
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in list(tmp_path.glob("train*")):
        path.rename(moved / path.name)

    assert len(PackSet(moved / "train.pack", vocabulary)) == 1


def test_pickled_packs_read_on(make_packs, make_text):
    packs = pickle.loads(pickle.dumps(make_packs([make_text(10)])))

    (piece,) = packs.pieces(0)
    np.testing.assert_array_equal(piece.store.read(piece.document), make_text(10).tokens)


def test_missing_packs_are_named(tmp_path, vocabulary):
    with pytest.raises(InputError, match=r"none\.pack: no packs there; make them with emu3 pack"):
        PackSet(tmp_path / "none.pack", vocabulary)


def test_short_array_is_refused(make_packs, make_text, tmp_path, vocabulary):
    make_packs([make_text(10)])
    np.save(tmp_path / "train.pack/lengths.npy", np.zeros(0, np.int32))

    with pytest.raises(InputError, match=r"lengths\.npy: int32 \[0\], expected int32 \[1\]"):
        PackSet(tmp_path / "train.pack", vocabulary)


def test_full_check_finds_tokens_that_are_missing(make_packs, make_text, tmp_path):
    packs = make_packs([make_text(10)] * 3)
    np.save(tmp_path / "train.pack/documents.npy", np.array([0, 1, 1]))

    with pytest.raises(InputError, match="does not hold every token"):
        PackSet(packs.path, packs.stores[0].vocabulary).check_all()


def test_header_tells_what_was_asked_for(make_packs, make_text, tmp_path):
    make_packs([make_text(16)] * 3, 48, seed=5, max_documents=3)

    header = json.loads((tmp_path / "train.pack/pack.json").read_text())
    assert (header["context"], header["seed"], header["max_documents"]) == (48, 5, 3)
    assert (header["packs"], header["fill"]) == (1, 1.0)
    assert [shard["path"] for shard in header["shards"]] == ["../train"]


def test_packs_replace_no_folder_of_something_else(write_shard, make_text, tmp_path, vocabulary):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("the only copy")

    with pytest.raises(InputError, match=r"out: exists and is no folder of packs, .*thesis\.txt"):
        pack_shards([write_shard([make_text(10)])], tmp_path / "out", 64, vocabulary=vocabulary)

    assert (tmp_path / "out" / "thesis.txt").read_text() == "the only copy"
