"""Text to a shard."""

import pytest

from emu3_megatron.data.store import TokenStore
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.text import prepare_text


def texts(prefix, vocabulary):
    store = TokenStore(prefix, vocabulary)
    return [vocabulary.decode(store.read(i)) for i in range(len(store))]


@pytest.fixture
def folder(tmp_path):
    """A .jsonl file of two texts and a .txt file."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "one"}\n{"text": "two", "source": "web"}\n')
    (folder / "b.txt").write_text("three 三")
    return folder


def test_a_folder_of_texts(folder, tmp_path, vocabulary):
    counts = prepare_text(folder, tmp_path / "shard", vocabulary)

    assert texts(tmp_path / "shard", vocabulary) == ["one", "two", "three 三"]
    assert counts.documents == 3


def test_a_single_file(folder, tmp_path, vocabulary):
    prepare_text(folder / "a.jsonl", tmp_path / "shard", vocabulary)

    assert texts(tmp_path / "shard", vocabulary) == ["one", "two"]


@pytest.mark.parametrize("line", [b"{", b'"text"', b'{"title": "x"}', b'{"text": " "}', b"\xff"])
def test_bad_lines_are_named_or_skipped(folder, tmp_path, vocabulary, line):
    with (folder / "a.jsonl").open("ab") as file:
        file.write(line + b"\n")

    assert prepare_text(folder, tmp_path / "shard", vocabulary).skipped == 1
    with pytest.raises(InputError, match=r"a\.jsonl:3: "):
        prepare_text(folder, tmp_path / "strict", vocabulary, strict=True)


def test_filters_leave_texts_out(folder, tmp_path, vocabulary):
    counts = prepare_text(folder, tmp_path / "shard", vocabulary, filters=[lambda t: len(t) == 3])

    assert (counts.documents, counts.filtered) == (2, 1)
