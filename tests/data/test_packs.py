"""Pack folders: what they hold, what they refuse, and documents longer than a pack."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from emu3_megatron.data.packing.packs import PackSet, pack_shards
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import (
    Turn,
    Vision,
    captioned_clip,
    dialogue,
    plain_text,
    understanding,
)


def held_tokens(packs):
    """The tokens of each document of the first shard, put together from its pieces."""
    pieces = sorted(
        (piece for pack in range(len(packs)) for piece in packs.row(pack)),
        key=lambda piece: (piece.document, piece.start),
    )
    documents = {}
    for piece in pieces:
        documents.setdefault(piece.document, []).append(piece.tokens)
    return [np.concatenate(documents[i]).tolist() for i in sorted(documents)]


def test_packs_hold_every_document(make_packs, make_image, make_text):
    documents = [make_image(), make_text(10), make_text(30), make_image("a dog")]

    packs = make_packs(documents, 64)

    assert held_tokens(packs) == [document.tokens.tolist() for document in documents]
    packs.check_all()


def test_packs_span_shards(write_shard, make_text, tmp_path, vocabulary):
    prefixes = [write_shard([make_text(10)] * 2, name) for name in ("a", "b")]
    report = pack_shards(prefixes, tmp_path / "ab.pack", 40, vocabulary=vocabulary)

    pieces = PackSet(tmp_path / "ab.pack", vocabulary).row(0)
    found = sorted((Path(piece.source).name, piece.document) for piece in pieces)
    assert found == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert (report.packs, report.documents, report.fill, report.cuts) == (1, 4, 1.0, 0)


def test_long_text_is_cut(make_packs, make_text):
    packs = make_packs([make_text(150)], 64)

    assert sorted(len(piece.tokens) for i in range(3) for piece in packs.row(i)) == [22, 64, 64]
    packs.check_all()


def test_long_caption_is_cut_so_that_the_image_keeps_its_end(make_packs, make_image):
    image = make_image("a" * 50)  # BOS and 50 bytes, 22 tokens of image, EOS

    packs = make_packs([image], 64)

    pieces = sorted(packs.row(0) + packs.row(1), key=lambda piece: piece.start)
    assert [(piece.start, len(piece.tokens)) for piece in pieces] == [(0, 10), (10, 64)]


def test_no_image_is_cut(make_packs, make_image, vocabulary):
    rng = np.random.default_rng(0)
    documents = [make_image("a" * int(n)) for n in rng.integers(0, 200, 50)]
    documents += [
        understanding(vocabulary, rng.integers(0, 512, (3, 4)), "b" * int(n))
        for n in rng.integers(0, 200, 50)
    ]

    packs = make_packs(documents, 64)

    assert held_tokens(packs) == [document.tokens.tolist() for document in documents]
    for piece in (piece for pack in range(len(packs)) for piece in packs.row(pack)):
        begins = np.flatnonzero(piece.tokens == vocabulary.vision_start)
        ends = np.flatnonzero(piece.tokens == vocabulary.vision_end)
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

    (piece,) = packs.row(0)
    np.testing.assert_array_equal(piece.tokens, make_text(10).tokens)


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

    with pytest.raises(InputError, match="does not hold every document"):
        PackSet(packs.path, packs.stores[0].vocabulary).check_all()


def test_header_tells_what_was_asked_for(make_packs, make_text, tmp_path):
    make_packs([make_text(16)] * 3, 48, seed=5, max_documents=3)

    header = json.loads((tmp_path / "train.pack/pack.json").read_text(encoding="utf-8"))
    assert (header["context"], header["seed"], header["max_documents"]) == (48, 5, 3)
    assert (header["packs"], header["fill"]) == (1, 1.0)
    assert [shard["path"] for shard in header["shards"]] == ["../train"]


def test_packs_replace_no_folder_of_something_else(write_shard, make_text, tmp_path, vocabulary):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("the only copy", encoding="utf-8")

    with pytest.raises(InputError, match=r"out: exists and is no folder of packs, .*thesis\.txt"):
        pack_shards([write_shard([make_text(10)])], tmp_path / "out", 64, vocabulary=vocabulary)

    assert (tmp_path / "out" / "thesis.txt").read_text(encoding="utf-8") == "the only copy"


def test_pieces_know_what_is_context(make_packs, answered):
    (piece,) = make_packs([answered], 16).row(0)

    assert piece.context.tolist() == [True] * 4 + [False] * 3


def test_content_is_that_of_the_packs_and_not_of_their_place(
    make_packs, make_text, tmp_path, vocabulary
):
    packs = make_packs([make_text(10)] * 9, 64)
    other = make_packs([make_text(10)] * 9, 64, "other", seed=1)
    (tmp_path / "moved").mkdir()
    for path in list(tmp_path.glob("train*")):
        path.rename(tmp_path / "moved" / path.name)

    assert PackSet(tmp_path / "moved" / "train.pack", vocabulary).content == packs.content
    assert packs.content != other.content


# Selections


@pytest.fixture
def of_every_layout(make_image, make_text, answered, vocabulary):
    """Documents by their layout."""
    codes = np.zeros((3, 4), int)
    return {
        "captioned": make_image("a cat"),
        "a clip": captioned_clip(vocabulary, "a dog", codes[None], 8.0, 1.0),
        "understanding": understanding(vocabulary, codes, "a cat"),
        "text": make_text(10),
        "a question and its answer": answered,
        "a question about an image": dialogue(
            vocabulary, [Turn([Vision.image(codes), "what is it"], "a cat")]
        ),
    }


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("captioned", {"captioned", "a clip"}),
        ("understanding", {"understanding"}),
        ("text", {"text", "a question and its answer"}),
    ],
)
def test_documents_are_selected_by_layout(select, expected, of_every_layout, make_packs):
    packs = make_packs(of_every_layout.values(), 256, select=select)

    names = list(of_every_layout)
    found = {names[piece.document] for i in range(len(packs)) for piece in packs.row(i)}
    assert found == expected
    packs.check_all()


def test_a_selection_is_told_by_the_header_and_all_by_its_absence(make_packs, make_text, tmp_path):
    make_packs([make_text(10)], name="some", select="text")
    make_packs([make_text(10)], name="every")

    some, every = (
        json.loads((tmp_path / f"{name}.pack/pack.json").read_text(encoding="utf-8"))
        for name in ("some", "every")
    )
    assert some["select"] == "text"
    assert "select" not in every


def test_what_a_selection_leaves_out_may_be_longer_than_the_context(
    make_packs, make_image, make_text
):
    packs = make_packs([make_image(), make_text(10)], 16, select="text")

    assert [piece.document for piece in packs.row(0)] == [1]


def test_a_selection_of_nothing_is_refused(make_packs, make_text):
    with pytest.raises(InputError, match="train: no document is of the layout understanding; sel"):
        make_packs([make_text(10)], select="understanding")


def test_full_check_finds_a_document_that_was_not_selected(
    make_packs, make_text, make_image, tmp_path
):
    packs = make_packs([make_text(29), make_image()], 64, select="text")
    np.save(tmp_path / "train.pack/documents.npy", np.array([1]))  # it is as long

    with pytest.raises(InputError, match="does not hold every document"):
        PackSet(packs.path, packs.stores[0].vocabulary).check_all()


# Groups of documents


@pytest.fixture
def pack_pairs(write_shard, tmp_path, vocabulary):
    """A function that packs texts of these lengths as pairs."""

    def make(lengths, context=64, **settings):
        texts = [plain_text(vocabulary, "x" * (length - 2)) for length in lengths]
        prefix = write_shard(texts, "pairs", group=2)
        path = tmp_path / "pairs.pack"
        report = pack_shards([prefix], path, context, vocabulary=vocabulary, **settings)
        return PackSet(path, vocabulary), report

    return make


def test_pairs_stay_whole_and_side_by_side(pack_pairs):
    lengths = np.random.default_rng(0).integers(5, 32, 80)
    packs, report = pack_pairs(lengths)

    held = [(p.document, p.group, p.side) for i in range(len(packs)) for p in packs.row(i)]
    assert held[::2] == [(2 * group, group, 0) for _, group, _ in held[::2]]
    assert held[1::2] == [(2 * group + 1, group, 1) for _, group, _ in held[::2]]
    assert sorted(document for document, _, _ in held) == list(range(80))
    assert all(len(packs.row(i)) % 2 == 0 for i in range(len(packs)))
    assert (report.documents, report.cuts) == (80, 0)
    packs.check_all()


def test_no_more_documents_than_are_allowed_share_a_pack_of_pairs(pack_pairs):
    packs, _ = pack_pairs([5] * 40, context=1000, max_documents=7)

    assert max(len(packs.row(i)) for i in range(len(packs))) == 6


def test_a_pair_longer_than_the_context_is_named(pack_pairs):
    with pytest.raises(InputError, match=r"pairs: documents 2 to 3, a group .* are 70 tokens, the"):
        pack_pairs([10, 10, 35, 35])


def test_a_pack_that_takes_no_pair_is_refused(pack_pairs):
    with pytest.raises(InputError, match="max_documents=1: less than a group of 2"):
        pack_pairs([10, 10], max_documents=1)


def test_pairs_and_single_documents_are_packed_apart(write_shard, make_text, tmp_path, vocabulary):
    prefixes = [write_shard([make_text(9)] * 2, "a"), write_shard([make_text(9)] * 2, "b", group=2)]

    with pytest.raises(InputError, match=r"b: groups of 2, and of 1 in .*a; pack them apart"):
        pack_shards(prefixes, tmp_path / "ab.pack", 64, vocabulary=vocabulary)


def test_a_pair_is_selected_whole_or_not_at_all(
    write_shard, make_image, make_text, tmp_path, vocabulary
):
    documents = [make_image(), make_image(), make_image(), make_text(9)]
    prefix = write_shard(documents, "pairs", group=2)
    path = tmp_path / "pairs.pack"
    pack_shards([prefix], path, 64, vocabulary=vocabulary, select="captioned")

    packs = PackSet(path, vocabulary)
    assert [piece.document for piece in packs.row(0)] == [0, 1]
    packs.check_all()


def test_full_check_finds_pairs_that_were_parted(pack_pairs, tmp_path, vocabulary):
    packs, _ = pack_pairs([10] * 4)
    np.save(tmp_path / "pairs.pack/documents.npy", np.array([0, 3, 2, 1]))

    with pytest.raises(InputError, match="does not hold every document"):
        PackSet(packs.path, vocabulary).check_all()


def test_packs_whose_shard_no_longer_holds_pairs_are_refused(pack_pairs, tmp_path, vocabulary):
    packs, _ = pack_pairs([10] * 4)
    sidecar = tmp_path / "pairs.json"
    sidecar.write_text(
        json.dumps({**json.loads(sidecar.read_text(encoding="utf-8")), "group": 4}),
        encoding="utf-8",
    )

    with pytest.raises(InputError, match=r"pairs\.pack: made from other shards"):
        PackSet(packs.path, vocabulary)
