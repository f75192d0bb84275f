"""The best items by score columns: ours, and those of a user's table."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emu3_megatron.config import load_recipe
from emu3_megatron.config.prepare import PrepareRecipe, SelectionConfig
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.inspecting import write_page
from emu3_megatron.prepare.pipeline import prepare
from emu3_megatron.prepare.selecting import select_best
from emu3_megatron.prepare.tables import read_table

PHOTOS = ["a.png", "b.png", "c.png", "d.png", "e.png"]


def items(*names, **columns):
    """Rows that every other rule keeps."""
    return [
        {"source": name, "kept": True, "reason": None, **{c: v[i] for c, v in columns.items()}}
        for i, name in enumerate(names or PHOTOS)
    ]


def kept(rows):
    return [row["source"] for row in rows if row["kept"]]


def select(rows, kind="images", **values):
    return select_best(kind, rows, SelectionConfig.model_validate(values))


@pytest.fixture
def table(tmp_path):
    """A function that writes rows as a .jsonl table."""

    def write(*rows):
        path = tmp_path / "scores.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def test_the_best_share_by_a_score_of_ours():
    rows = items(quality=[1.0, 5.0, 3.0, 4.0, 2.0])

    about = select(rows, columns={"quality": 1}, top=0.4)

    assert kept(rows) == ["b.png", "d.png"]
    assert rows[2]["reason"] == "not selected: score 3"
    assert (about["scored"], about["selected"], about["least"]) == (5, 2, 4.0)


def test_a_share_is_rounded_up():
    rows = items(quality=[1.0, 5.0, 3.0, 4.0, 2.0])
    select(rows, columns={"quality": 1}, top=0.41)

    assert len(kept(rows)) == 3


def test_a_threshold_is_kept_itself():
    rows = items(quality=[1.0, 5.0, 3.0, 4.0, 2.0])
    select(rows, columns={"quality": 1}, at_least=3)

    assert kept(rows) == ["b.png", "c.png", "d.png"]


def test_of_equal_scores_the_first_by_name_stays():
    rows = items("b.png", "a.png", "c.png", quality=[1.0, 1.0, 1.0])
    select(rows, columns={"quality": 1}, top=0.3)

    assert kept(rows) == ["a.png"]


def test_the_score_is_the_weighted_mean_of_columns_of_both_tables(table):
    path = table(
        {"file": "b.png", "hpsv2": 0.25, "mps": 8},
        {"file": "a.png", "hpsv2": 0.20, "mps": 9},
    )
    rows = items("a.png", "b.png", quality=[6.0, 6.0])
    select(rows, columns={"hpsv2": 20, "mps": 0.5, "quality": 0.5}, table=path, top=0.5)

    assert [row["score"] for row in rows] == pytest.approx([11.5 / 21, 12 / 21])
    assert kept(rows) == ["b.png"]
    assert rows[0]["hpsv2"] == 0.20, "for the table of images"


def test_a_parquet_table_names_the_files_in_a_column_of_yours(tmp_path):
    path = tmp_path / "scores.parquet"
    pq.write_table(pa.table({"path": ["a.png", "b.png"], "mps": [1, 2]}), path)
    rows = items("a.png", "b.png")
    select(rows, columns={"mps": 1}, table=path, file_column="path", top=0.5)

    assert kept(rows) == ["b.png"]


def test_what_other_rules_dropped_is_not_counted(table):
    rows = items(quality=[1.0, 5.0, 3.0, 4.0, 2.0])
    rows[1] |= {"kept": False, "reason": "too small: 8x8"}
    select(rows, columns={"quality": 1}, top=0.5)

    assert kept(rows) == ["c.png", "d.png"]
    assert rows[1]["reason"] == "too small: 8x8"


def test_what_has_no_score_is_set_aside(table):
    path = table({"file": "a.png", "mps": 1.0}, {"file": "b.png", "mps": None})
    rows = items("a.png", "b.png", "c.png")
    select(rows, columns={"mps": 1}, table=path, top=1)

    assert kept(rows) == ["a.png"]
    assert [row["reason"] for row in rows[1:]] == ["no score: mps", "no score: mps"]


def test_a_table_of_clips_is_joined_by_first_frame_and_one_of_videos_by_file(table):
    clips = items("v.mp4", "v.mp4", "w.mp4", start_frame=[0, 24, 0])
    of_clips = table(
        {"file": "v.mp4", "start_frame": 0, "mps": 1},
        {"file": "v.mp4", "start_frame": 24, "mps": 3},
        {"file": "w.mp4", "mps": 2},
    )
    select(clips, "clips", columns={"mps": 1}, table=of_clips, top=1)

    assert [row["score"] for row in clips] == [1, 3, 2]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"file": "a.png", "mps": "9"}], r"row 1: a\.png: mps is '9', not a number; correct it"),
        ([{"file": "a.png", "mps": True}], r"row 1: a\.png: mps is True, not a number"),
        ([{"file": "a.png", "mps": float("nan")}], r"row 1: a\.png: mps is nan, not a number"),
        (
            [{"file": "a.png", "mos": 1}],
            r"scores\.jsonl: has no column 'mps', only file, mos; imag",
        ),
        ([{"mps": 1}], r"scores\.jsonl: row 1: has no column 'file'"),
        ([{"file": "a.png", "mps": 1}] * 2, r"row 2: a\.png is in another row too; leave one"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_with_its_row(table, rows, message):
    path = table(*rows)

    with pytest.raises(InputError, match=message) as error:
        select(items("a.png"), columns={"mps": 1}, table=path, top=1)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_score_that_nobody_measured_is_named():
    with pytest.raises(
        InputError, match=r"images\.select\.columns: no score 'mps'; images have wi"
    ):
        select(items("a.png"), columns={"mps": 1}, top=1)


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl: not a readable table of scores"):
        select(items("a.png"), columns={"mps": 1}, table=tmp_path / "none.jsonl", top=1)


@pytest.mark.parametrize("rules", [{}, {"top": 0.5, "at_least": 1}])
def test_a_selection_has_one_rule(rules):
    select = json.dumps({"columns": {"quality": 1}, **rules})

    with pytest.raises(InputError, match=r"images\.select: give one of top and at_least"):
        load_recipe(PrepareRecipe, "prepare-tiny-cpu", [f"images.select={select}"])


@pytest.fixture
def prepared(tmp_path, tokenizer, add_photo, table):
    """Three photos, the best two of which are kept."""
    scores = {"one": 1.0, "two": 2.5, "three": 2.0}
    for number, name in enumerate(scores):
        photos = add_photo(name, f"photo {name}", seed=number)
    tokenizer.save(tmp_path / "tokenizer")
    path = table(*({"file": f"{name}.png", "mps": score} for name, score in scores.items()))
    loose = {"min_side": 32, "min_quality": 0, "ocr": False, "area": 1536}
    select = {"columns": {"mps": 1}, "table": path, "top": 0.6}
    recipe = {
        "out": tmp_path / "out",
        "model": "emu3-tiny",
        "tokenizer": tmp_path / "tokenizer",
        "images": {"source": photos, "select": select, **loose},
        "packs": [{"context": 128, "kinds": ["images"]}],
        "run": {"executor": "local"},
    }
    prepare(PrepareRecipe.model_validate(recipe), ["images"])
    return tmp_path / "out"


def test_the_best_are_packed_and_the_table_says_why(prepared):
    rows = {row["source"]: row for row in read_table(prepared / "images.parquet")}
    entry = json.loads((prepared / "manifest.json").read_text(encoding="utf-8"))["kinds"]["images"]

    assert kept(rows.values()) == ["three.png", "two.png"]
    assert rows["one.png"]["reason"] == "not selected: score 1"
    assert rows["two.png"]["mps"] == rows["two.png"]["score"] == 2.5
    assert entry["set_aside"] == {"not selected": 1}
    assert entry["shards"][0]["documents"] == 2


def test_the_page_tells_of_the_selection(prepared, tmp_path):
    write_page(prepared, tmp_path / "data.html", None, samples=4)
    page = (tmp_path / "data.html").read_text(encoding="utf-8")

    assert (
        "Selected by the mean of mps x 1, the best 60.00%: 2 of 3 with a score, the least 2" in page
    )
    assert "<figcaption>mps</figcaption><svg" in page
    assert "one.png</td><td>not selected: score 1" in page
