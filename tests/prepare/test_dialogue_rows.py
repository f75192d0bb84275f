"""Files of rows: lists, lines and Parquet, with the number of each row."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emu3_megatron.errors import InputError
from emu3_megatron.prepare.dialogues import rows
from emu3_megatron.prepare.dialogues.parsing import OddRowError, parse_row
from emu3_megatron.prepare.dialogues.rows import Damaged, NotJson, read_parquet, read_rows

ROWS = [{"id": i, "messages": ["x" * i, '"]}, {"', "ü"]} for i in range(50)]


@pytest.fixture(params=[1, 7, 64, 1 << 20])
def pieces(request, monkeypatch):
    """Files are read by pieces of so many characters."""
    monkeypatch.setattr(rows, "_CHARACTERS", request.param)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list(tmp_path, indent):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS, indent=indent, ensure_ascii=False), encoding="utf-8")

    assert list(read_rows(path)) == list(enumerate(ROWS))


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("text", ["[]", " [ ] \n"])
def test_an_empty_list(tmp_path, text):
    (tmp_path / "rows.json").write_text(text, encoding="utf-8")

    assert list(read_rows(tmp_path / "rows.json")) == []


@pytest.mark.usefixtures("pieces")
def test_numbers_are_not_cut(tmp_path):
    (tmp_path / "rows.json").write_text("[123456789, 12, 3]", encoding="utf-8")

    assert [row for _, row in read_rows(tmp_path / "rows.json")] == [123456789, 12, 3]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_lines_are_counted_and_a_broken_one_stands_for_itself(tmp_path, name):
    (tmp_path / name).write_text('\ufeff{"a": 1}\n\n{"a": \n{"a": 2}', encoding="utf-8")

    (first, broken, last) = read_rows(tmp_path / name)

    assert (first, last) == ((0, {"a": 1}), (3, {"a": 2}))
    assert broken[0] == 2
    assert isinstance(broken[1], NotJson)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"a": 1}, {"a": ]', "row 1: not JSON"),
        ('[{"a": 1} {"a": 2}]', "row 0: not JSON"),
        ('[{"a": 1}, {"a": 2}', "row 1: not JSON"),
        ("[" * 100_000, "row 0: not JSON"),
    ],
)
def test_a_list_that_breaks_off_names_the_row(tmp_path, text, reason):
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(InputError, match=rf"rows\.json: {reason}.*repair the file") as error:
        list(read_rows(path))
    assert "\n" not in str(error.value)


def test_what_is_no_text_is_named(tmp_path):
    (tmp_path / "rows.json").write_bytes(b"\xff\xfe[")

    with pytest.raises(InputError, match=r"rows\.json: not UTF-8 text"):
        list(read_rows(tmp_path / "rows.json"))


@pytest.fixture
def parquet(tmp_path):
    """Fifty rows in groups of twenty, with a column that means nothing here."""
    path = tmp_path / "rows.parquet"
    table = pa.table({"conversations": [[{"from": f"{i}"}] for i in range(50)], "id": [1] * 50})
    pq.write_table(table, path, row_group_size=20)
    return path


def test_parquet(parquet):
    found = list(read_rows(parquet))

    assert [number for number, _ in found] == list(range(50))
    assert found[33][1] == {"conversations": [{"from": "33"}]}


@pytest.mark.parametrize(("first", "end"), [(0, 1), (19, 21), (20, 40), (45, 60)])
def test_some_rows_of_parquet(parquet, first, end):
    assert [number for number, _ in read_parquet(parquet, first, end)] == list(
        range(first, min(end, 50))
    )


def test_broken_parquet_is_named(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")

    with pytest.raises(InputError, match=r"rows\.parquet: not a readable Parquet file"):
        list(read_rows(tmp_path / "rows.parquet"))


def test_of_a_damaged_row_group_the_rows_are_one_that_says_so(tmp_path):
    path = tmp_path / "rows.parquet"
    rows = [{"messages": [{"role": "user", "content": f"question {i:04}"}]} for i in range(300)]
    pq.write_table(
        pa.Table.from_pylist(rows),
        path,
        row_group_size=100,
        compression="NONE",
        use_dictionary=False,
    )
    data = bytearray(path.read_bytes())
    with pq.ParquetFile(path) as file:
        column = file.metadata.row_group(1).column(1)
        at = column.data_page_offset
    data[at : at + 60] = b"\xff" * 60
    path.write_bytes(data)

    found = dict(read_rows(path))

    assert [number for number, row in found.items() if isinstance(row, Damaged)] == [100]
    assert set(found) == {*range(101), *range(200, 300)}
    with pytest.raises(OddRowError, match=r"unreadable: row group 1 is damaged .* its 100 rows"):
        parse_row(found[100])
