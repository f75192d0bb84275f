"""Captions from files: several of one picture, what is no text, and what is said at once."""

import json

import pytest

from emu3_megatron.config.prepare import CaptionConfig, PrepareRecipe
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.captions.files import Captions
from emu3_megatron.prepare.pipeline import prepare
from emu3_megatron.prepare.tables import read_records


def captions(tmp_path, *rows, columns=("caption",)):
    manifest = tmp_path / "captions.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Captions(CaptionConfig(manifest=manifest, columns=list(columns)), tmp_path)


def test_a_list_is_several_captions(tmp_path):
    found = captions(tmp_path, {"file": "a.jpg", "caption": ["one ", "", None, "two"]})

    assert found.of("a.jpg") == ["one", "two"]


def test_several_rows_of_a_file_are_several_captions(tmp_path):
    rows = [{"file": "a.jpg", "caption": text} for text in ("one", "two", "one")]

    assert captions(tmp_path, *rows).of("a.jpg") == ["one", "two"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3.5, "3.5"),
        (float("nan"), "nan"),
        (True, "True"),
        ({"text": "a"}, "{'text': 'a'}"),
        (["a", 7], "7"),
    ],
)
def test_what_is_no_text_is_refused_by_name(tmp_path, value, said):
    found = captions(tmp_path, {"file": "a.jpg", "caption": value}, {"file": "b", "caption": "b"})

    with pytest.raises(InputError) as caught:
        found.of("a.jpg")

    assert str(caught.value).endswith(
        f"captions.jsonl: row 1: 'caption' is {said}, which is no text"
    )
    assert found.of("b") == ["b"]


def test_a_mark_of_the_byte_order_is_no_part_of_a_caption(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffa cat\n", encoding="utf-8")
    (tmp_path / "captions.jsonl").write_text(
        '\ufeff{"file": "b.jpg", "caption": "\ufeffa dog"}', encoding="utf-8"
    )
    found = Captions(CaptionConfig(manifest=tmp_path / "captions.jsonl"), tmp_path)

    assert (found.of("a.jpg"), found.of("b.jpg")) == (["a cat"], ["a dog"])


def test_empty_lines_are_no_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n\n  \n', encoding="utf-8")

    assert list(read_records(tmp_path / "a.jsonl", "table")) == [{"a": 1}, {"a": 2}]


def test_a_line_that_is_no_json_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": \n', encoding="utf-8")

    with pytest.raises(InputError, match=r"a\.jsonl: not a readable table \(line 3: "):
        list(read_records(tmp_path / "a.jsonl", "table"))


def test_a_row_without_a_name_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"row 2: has no name of a file in column 'file'"):
        captions(tmp_path, {"file": "a", "caption": "a"}, {"file": 7, "caption": "b"})


# Before any work


def recipe(tmp_path, tokenizer, **section):
    tokenizer.save(tmp_path / "tokenizer")
    values = {"out": tmp_path / "out", "model": "emu3-tiny", "tokenizer": tmp_path / "tokenizer"}
    return PrepareRecipe.model_validate({**values, "run": {"executor": "local"}, **section})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"manifest": "none.jsonl"}, r"none\.jsonl: not a readable caption manifest"),
        (
            {"manifest": "captions.jsonl", "columns": ["en"]},
            r"captions\.jsonl: no row has a column 'en'; it has caption, file: name yours in capt",
        ),
    ],
)
def test_a_missing_manifest_or_column_is_said_at_once(tmp_path, tokenizer, settings, message):
    captions(tmp_path, {"file": "a.jpg", "caption": "a"})
    settings = {**settings, "manifest": tmp_path / settings["manifest"]}
    images = {"source": tmp_path / "photos", "captions": settings}  # no such folder

    with pytest.raises(InputError, match=message):
        prepare(recipe(tmp_path, tokenizer, images=images), ["images"])


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_missing_column_of_texts_is_said_at_once(tmp_path, tokenizer, suffix):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "texts"
    folder.mkdir()
    if suffix == "parquet":
        pq.write_table(pa.table({"body": ["a"]}), folder / "a.parquet")
    else:
        (folder / "a.jsonl").write_text('{"body": "a"}\n', encoding="utf-8")

    with pytest.raises(InputError, match=r"no column 'text'; it has body: name yours in text\.col"):
        prepare(recipe(tmp_path, tokenizer, text={"source": folder}), ["text"])
