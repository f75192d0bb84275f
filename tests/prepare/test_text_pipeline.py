"""Text by byte ranges: the same as a loop over lines, whatever the ranges."""

import importlib.util
import io
import json
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.shards import write_by_megatron

from emu3_megatron.config.prepare import PrepareRecipe
from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import plain_text
from emu3_megatron.prepare.pipeline import prepare
from emu3_megatron.prepare.tables import read_table
from emu3_megatron.prepare.text_files import lines_between
from emu3_megatron.vocabulary import Vocabulary

needs_ranks = pytest.mark.skipif(
    importlib.util.find_spec("dashscope") is None, reason="no text vocabulary of Qwen here"
)

LINES = [f"line {i} " + "text 文字 " * (i % 7) for i in range(200)]


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    with (folder / "a.jsonl").open("w", encoding="utf-8") as file:
        for line in LINES:
            file.write(json.dumps({"text": line}, ensure_ascii=len(line) % 2 == 0) + "\n")
    return folder


@pytest.fixture
def run(tmp_path, texts):
    """A function that prepares the texts; returns the recipe and the manifest."""

    def run(out="out", strict=False, source=texts, executor="local", model="emu3-tiny", **section):
        recipe = PrepareRecipe.model_validate(
            {
                "out": tmp_path / out,
                "model": model,
                "strict": strict,
                "text": {"source": source, "range_bytes": 1000, **section},
                "packs": [{"context": 256, "kinds": ["text"]}],
                "run": {"executor": executor, "workers": 2},
            }
        )
        return recipe, prepare(recipe, ["text"])

    return run


def found(recipe, manifest, vocabulary):
    stores = [
        TokenStore(recipe.out / "shards" / shard["name"], vocabulary)
        for shard in manifest["kinds"]["text"]["shards"]
    ]
    return [vocabulary.decode(store.read(i)) for store in stores for i in range(len(store))]


@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize("content", [b"one\ntwo\n\nthree", b"\n\na\nb\n", b"one long line only"])
def test_ranges_hold_every_line_once(content, size):
    lines = [
        line
        for start in range(0, len(content), size)
        for line in lines_between(io.BytesIO(content), start, min(len(content), start + size))
    ]

    assert [line.rstrip(b"\n") for _, line in lines] == [x for x in content.split(b"\n") if x]
    assert all(content[offset:].startswith(line) for offset, line in lines)


@pytest.mark.parametrize("range_bytes", [300, 4000, 10**6])
def test_the_shard_is_the_one_that_a_loop_writes(run, tmp_path, vocabulary, range_bytes):
    recipe, manifest = run(range_bytes=range_bytes)

    write_by_megatron(tmp_path / "loop", [plain_text(vocabulary, line) for line in LINES])
    (shard,) = manifest["kinds"]["text"]["shards"]
    for suffix in ("bin", "idx"):
        ours = recipe.out / "shards" / f"{shard['name']}.{suffix}"
        assert ours.read_bytes() == (tmp_path / f"loop.{suffix}").read_bytes()


@needs_ranks
@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_a_book_is_one_text_to_the_tokenizer(run, tmp_path, suffix):
    book = " ".join(f"Chapter {i}: the lighthouse keeper's recollections." for i in range(8_000))
    file = tmp_path / f"book.{suffix}"
    file.write_text(book if suffix == "txt" else json.dumps({"text": book}), encoding="utf-8")

    recipe, manifest = run(source=file, model="emu3-mini")

    vocabulary = Vocabulary.emu3()
    uncut = vocabulary.encoding._bpe.encode_ordinary(book)
    (shard,) = manifest["kinds"]["text"]["shards"]
    store = TokenStore(recipe.out / "shards" / shard["name"], vocabulary)
    assert store.read(0).tolist() == [vocabulary.bos, *uncut, vocabulary.eos]


def test_processes_write_the_same(run):
    _, alone = run("alone")
    _, together = run("together", executor="processes")

    assert alone == together


def test_equal_texts_are_kept_once_and_nfc_makes_them_equal(run, texts, vocabulary):
    accent = unicodedata.normalize("NFD", "café")
    (texts / "b.txt").write_text(accent, encoding="utf-8")
    (texts / "c.txt").write_text("café", encoding="utf-8")

    recipe, manifest = run()

    assert found(recipe, manifest, vocabulary) == [*LINES, "café"]
    assert manifest["kinds"]["text"]["set_aside"]["duplicate"] == 1


def test_parquet_is_read_by_row_groups(run, texts, vocabulary):
    pq.write_table(
        pa.table({"text": ["eins", "zwei", "drei"]}), texts / "b.parquet", row_group_size=2
    )

    recipe, manifest = run()

    assert found(recipe, manifest, vocabulary)[-3:] == ["eins", "zwei", "drei"]


def test_a_value_of_parquet_that_is_no_text_is_set_aside(run, texts):
    pq.write_table(pa.table({"text": ["eins", None]}), texts / "b.parquet")

    recipe, _ = run()

    (row,) = read_table(recipe.out / "text.parquet")
    assert row["reason"] == "b.parquet: row group 0, row 1: no text in 'text'"


def test_a_suffix_may_be_in_capitals(run, texts, vocabulary):
    (texts / "a.jsonl").rename(texts / "A.JSONL")

    recipe, manifest = run()

    assert found(recipe, manifest, vocabulary) == LINES


def test_a_file_may_stand_for_the_folder(run, texts, vocabulary):
    recipe, manifest = run(source=texts / "a.jsonl")

    assert found(recipe, manifest, vocabulary) == LINES


def test_a_file_of_another_kind_is_named(run, texts):
    (texts / "notes.md").write_text("notes", encoding="utf-8")

    with pytest.raises(InputError, match=r"notes\.md: ends in none of \.jsonl, .*\.parquet, \.txt"):
        run(source=texts / "notes.md")


def test_a_parquet_file_without_the_column_that_others_have_is_set_aside(run, texts):
    pq.write_table(pa.table({"body": ["eins", "zwei"]}), texts / "b.parquet", row_group_size=1)

    recipe, manifest = run()

    (row,) = read_table(recipe.out / "text.parquet")
    assert row["reason"] == "b.parquet: no column 'text'; it has body"
    assert manifest["kinds"]["text"]["kept"] == len(LINES)


def test_a_damaged_row_group_is_set_aside_alone(run, texts):
    rows = [f"row {i} " * 20 for i in range(6)]
    path = texts / "b.parquet"
    pq.write_table(pa.table({"text": rows}), path, row_group_size=2, compression="gzip")
    begins = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[begins : begins + 60] = b"\xff" * 60
    path.write_bytes(data)

    recipe, manifest = run()

    (row,) = read_table(recipe.out / "text.parquet")
    assert row["reason"].startswith("b.parquet: row group 1: damaged (")
    assert row["reason"].endswith("; its 2 texts are left out")
    assert manifest["kinds"]["text"]["kept"] == len(LINES) + 4


@pytest.mark.parametrize("content", [b"", b"PAR1 and nothing else PAR1"])
def test_a_file_that_is_no_parquet_is_set_aside(run, texts, content):
    (texts / "b.parquet").write_bytes(content)

    recipe, manifest = run()

    (row,) = read_table(recipe.out / "text.parquet")
    assert row["reason"].startswith("b.parquet: not a readable Parquet file (")
    assert manifest["kinds"]["text"]["kept"] == len(LINES)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON with a text in 'text'"),
        (b'{"text": 3}', "not JSON with a text in 'text'"),
        (b'{"title": "x"}', "not JSON with a text in 'text'"),
        (b'{"text": " "}', "0 characters, too short"),
        (b"\xff", "not UTF-8 text"),
        (b'{"text": "\\ud800"}', "not UTF-8 text"),
        (b"[" * 100_000, "not JSON with a text in 'text'"),
    ],
)
def test_bad_lines_are_set_aside_or_refused(run, texts, line, reason):
    size = (texts / "a.jsonl").stat().st_size
    with (texts / "a.jsonl").open("ab") as file:
        file.write(line + b"\n")

    recipe, manifest = run()

    (row,) = read_table(recipe.out / "text.parquet")
    assert row["reason"] == f"a.jsonl:byte {size}: {reason}"
    assert manifest["kinds"]["text"]["found"] == 201
    with pytest.raises(InputError, match="repair it, or let it"):
        run("strict", strict=True)


def test_a_mark_of_the_byte_order_is_no_part_of_a_text(texts, run, vocabulary):
    (texts / "a.jsonl").write_text(
        '\ufeff{"text": "\ufeffone"}\n{"text": "two"}\n\n \n', encoding="utf-8"
    )
    (texts / "b.txt").write_text("\ufeffthree", encoding="utf-8")

    recipe, manifest = run()

    assert found(recipe, manifest, vocabulary) == ["one", "two", "three"]
    assert manifest["kinds"]["text"]["set_aside"] == {"duplicate": 0, "unreadable": 0}
