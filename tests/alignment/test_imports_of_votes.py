"""Votes of other tools, in the form in which those tools export them."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.preferences import make_samples

from emu3_megatron.alignment.imports.importing import import_votes
from emu3_megatron.alignment.samples import Samples
from emu3_megatron.alignment.votes import read_votes
from emu3_megatron.cli import main
from emu3_megatron.errors import InputError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three prompts with four samples each."""
    return make_samples(tmp_path_factory.mktemp("made"), media=False)


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "samples")


@pytest.fixture
def imported(folder, tmp_path):
    """A function that imports records or text; returns the votes, by voter and prompt."""

    def run(content, name="export.json", columns=()):
        file = tmp_path / name
        file.write_text(
            content if isinstance(content, str) else json.dumps(content), encoding="utf-8"
        )
        import_votes(folder, file, columns)
        return read_votes(Samples(folder))

    return run


@pytest.fixture
def refused(imported, folder):
    """A function that imports what cannot be used; nothing is written."""

    def run(match, *arguments, **keywords):
        with pytest.raises(InputError, match=match):
            imported(*arguments, **keywords)
        assert not list(folder.glob("imported-*"))

    return run


# Label Studio


def task(result, completed_by=7, data=None, **annotation):
    annotation = {"id": 1, "completed_by": completed_by, "result": result, **annotation}
    data = {"prompt": "a cat", **(data or {})}
    return {"id": 100, "data": data, "annotations": [annotation], "project": 3}


def pairwise(left, right, selected, **annotation):
    result = {
        "id": "x1",
        "from_name": "comparison",
        "to_name": "a",
        "type": "pairwise",
        "value": {"selected": selected},
        "origin": "manual",
    }
    return task([result], data={"left": left, "right": right}, **annotation)


def ranker(ranked, **annotation):
    result = {"from_name": "rank", "to_name": "results", "type": "ranker"}
    return task([{**result, "value": {"ranker": ranked}}], **annotation)


def test_pairwise(imported):
    tasks = [pairwise("0-1", "0-2", "left"), pairwise("1-0", "1-3", "right")]

    assert imported(tasks) == {"annotator-7": {0: {1: 1.0, 2: -1.0}, 1: {0: -1.0, 3: 1.0}}}


def test_several_comparisons_of_a_prompt_are_averaged(imported):
    tasks = [pairwise("0-1", "0-2", "left"), pairwise("0-2", "0-3", "left")]

    assert imported(tasks) == {"annotator-7": {0: {1: 1.0, 2: 0.0, 3: -1.0}}}


@pytest.mark.parametrize(
    "ranked",
    [["0-2", "0-0", "0-3"], {"rank": ["0-2", "0-0", "0-3"]}],
    ids=["a list", "a list by the tag's name"],
)
def test_a_ranking(ranked, imported):
    assert imported([ranker(ranked)]) == {"annotator-7": {0: {0: 0.0, 2: 1.0, 3: -1.0}}}


def test_buckets(imported):
    ranked = {"Best": ["0-1"], "worst": ["0-3"], "_": ["0-0", "0-2"]}

    assert imported([ranker(ranked)]) == {"annotator-7": {0: {0: 0.0, 1: 1.0, 2: 0.0, 3: -1.0}}}


def test_accounts_as_exports_have_them(imported):
    ann = pairwise("0-1", "0-2", "left", completed_by={"id": 1, "email": "ann@lab.org"})
    ben = pairwise("0-1", "0-2", "right", completed_by=2)

    assert set(imported([ann, ben])) == {"ann@lab.org", "annotator-2"}


def test_cancelled_annotations_and_other_results_are_passed_over(imported):
    cancelled = pairwise("0-1", "0-2", "right", was_cancelled=True)
    chosen = pairwise("0-1", "0-2", "left")
    comment = {"type": "textarea", "from_name": "why", "value": {"text": ["sharper"]}}
    chosen["annotations"][0]["result"].append(comment)

    assert imported([cancelled, chosen]) == {"annotator-7": {0: {1: 1.0, 2: -1.0}}}


MINIMAL = {"id": 1, "prompt": "a cat", "annotator": 4, "annotation_id": 23670, "rank": ["0-1"]}
OLD_RANKER = {"items": ["0-1", "0-2"], "weights": [1.0, 0.8], "selected": [False, False]}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (MINIMAL, "record 2: no annotations and data; export from Label Studio as JSON"),
        ({"id": 2, "completions": []}, "record 2: exported by a Label Studio before 1.0"),
        (
            task([{"type": "ranker", "value": OLD_RANKER}]),
            "record 2: a Ranker of another version of Label Studio",
        ),
        (ranker({"ads": ["0-1"], "best hits": []}), "record 2: buckets ads, best hits; they need"),
        (ranker({"best": ["0-1"], "worst": ["0-1"]}), "record 2: sample 0-1 is best and worst"),
        (ranker(["0-1", "0-1"]), "record 2: sample 0-1 is ranked twice"),
        (ranker(["0-1", "1-1"]), "record 2: samples of several prompts or of none: 0 and 1"),
        (ranker(["0-1", "0-4"]), "record 2: sample 0-4, which .* does not hold"),
        (ranker(["blog"]), "record 2: 'blog' is no sample; samples have ids such as 12-3"),
        (pairwise("0-1", None, "left"), "record 2: the task's data need the ids"),
        (pairwise("0-1", "0-2", "both"), "record 2: a Pairwise that selects 'both'"),
        (pairwise("0-1", "0-1", "left"), "record 2: sample 0-1 is best and worst at once"),
    ],
)
def test_label_studio_that_cannot_be_used(second, message, refused):
    refused(message, [pairwise("0-1", "0-2", "left"), second])


def test_an_export_without_votes(refused):
    refused(r"export\.json: holds no votes on samples", [task([])])


# Argilla


def record(id, **responses):
    fields = {"prompt": "a cat"}
    rest = {"metadata": {}, "suggestions": {}, "vectors": {}, "_server_id": "5b1c"}
    return {"id": id, "fields": fields, "responses": responses, **rest}


def said(value, user="ann"):
    return {"value": value, "user_id": user}


def test_a_ranking_question(imported):
    records = [record("0", rank=[said(["2", "0", "3"]), said(["0-3", "0-2"], "ben")])]

    assert imported(records) == {
        "ann": {0: {0: 0.0, 2: 1.0, 3: -1.0}},
        "ben": {0: {2: -1.0, 3: 1.0}},
    }


def test_a_ranking_with_draws(imported):
    ranked = [{"value": "1", "rank": 1}, {"value": "3", "rank": 1}, {"value": "0", "rank": 2}]

    assert imported([record("2", rank=[said(ranked)])]) == {"ann": {2: {0: -1.0, 1: 1.0, 3: 1.0}}}


def test_questions_for_the_best_and_the_worst(imported):
    records = [record("1", best=[said("2")], worst=[said("0")], why=[said("sharp")])]

    assert imported(records) == {"ann": {1: {0: -1.0, 1: 0.0, 2: 1.0, 3: 0.0}}}


def test_ratings_of_samples_are_standardised_by_user(imported):
    ratings = {"0-0": 5, "0-1": 3, "1-0": 3, "1-2": 1}
    records = [record(id, rating=[said(value)]) for id, value in ratings.items()]

    votes = imported(records)["ann"]

    assert votes[0] == pytest.approx({0: 2**0.5, 1: 0})
    assert votes[1] == pytest.approx({0: 0, 2: -(2**0.5)})


AS_LIST = {"id": "1", "fields": {}, "responses": [{"values": {}, "user_id": "ann"}]}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (AS_LIST, "record 2: its responses are not by question; export with Argilla 2"),
        (record("1", rank=["2", "0"]), "record 2: answers without user_id and value"),
        (record("5f0c-11", rank=[]), "record 2: id '5f0c-11'; a record has the number of a prompt"),
        (record("7", rank=[said(["0", "1"])]), "record 2: sample 7-0, which .* does not hold"),
        (record("1", best=[said("cat")]), "record 2: 'cat' is no sample"),
        (
            record("1", best=[said("1")], worst=[said("1")]),
            "record 2: sample 1-1 is best and worst",
        ),
    ],
)
def test_argilla_that_cannot_be_used(second, message, refused):
    refused(message, [record("0", rank=[said(["2", "0"])]), second])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"id": ["0"], "responses": [{}]}, "not a list of records"),
        ([{"text": "a cat", "score": 3}], "neither an export of Label Studio .* nor of Argilla"),
        ("{", "not JSON"),
    ],
)
def test_json_of_something_else(content, message, refused):
    refused(message, content)


def test_a_file_of_another_kind(refused):
    refused("give an export of Label Studio or Argilla", "", name="votes.xlsx")


# Tables of scores

CSV = "sample,prompt,aesthetics\n0-0,0,4.0\n0-2,0,6.0\n1-1,1,5.0\n1-3,1,\n"


def test_a_table_is_standardised(imported):
    votes = imported(CSV, "scores.csv")

    assert set(votes) == {"aesthetics"}
    assert votes["aesthetics"][0] == pytest.approx({0: -(1.5**0.5), 2: 1.5**0.5})
    assert votes["aesthetics"][1] == pytest.approx({1: 0})


def test_columns_count_as_voters(imported):
    rows = [{"sample": f"0-{i}", "hps": i, "mps": -i} for i in range(3)]
    table = "".join(json.dumps(row) + "\n" for row in rows)

    votes = imported(table, "scores.jsonl", ["hps", "mps"])

    assert votes["hps"][0] == pytest.approx({0: -(1.5**0.5), 1: 0, 2: 1.5**0.5})
    assert votes["mps"][0] == pytest.approx({0: 1.5**0.5, 1: 0, 2: -(1.5**0.5)})


def test_a_parquet_table(folder, tmp_path):
    table = pa.table({"sample": ["0-1", "0-2"], "score": [1.0, 2.0], "note": ["x", "y"]})
    pq.write_table(table, tmp_path / "scores.parquet")

    assert import_votes(folder, tmp_path / "scores.parquet") == {"score": 1}


def test_a_column_that_says_the_same_of_all(imported):
    votes = imported("sample,score\n0-0,3\n0-1,3\n", "scores.csv")

    assert votes["score"][0] == {0: 0.0, 1: 0.0}


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("id,score\n0-1,2\n", [], r"no column 'sample' with ids such as 12-3 \(columns: id, score"),
        ("sample,a,b\n0-1,2,3\n", [], "columns of numbers: a, b; name the scores with --column"),
        ("sample,note\n0-1,good\n", [], "columns of numbers: none"),
        ("sample,a\n0-1,2\n", ["b"], r"row 1: no column 'b' \(columns: sample, a\)"),
        ("sample,a\n0-1,2\n0-2,high\n", ["a"], "row 2: a is 'high', not a finite number"),
        ("sample,a\n0-1,2\n0-2,nan\n", ["a"], "row 2: a is 'nan', not a finite number"),
        ("sample,a\n0-1,2\n0-1,3\n", [], "row 2: sample 0-1 again, as in row 1"),
        ("sample,a\n0-1,2\n9-9,3\n", [], "row 2: sample 9-9, which .* does not hold"),
        ("sample,a\n0-1,2\nx.png,3\n", [], "row 2: 'x.png' is no sample"),
        ("", [], "no column 'sample'"),
    ],
)
def test_tables_that_cannot_be_used(content, columns, message, refused):
    refused(message, content, name="scores.csv", columns=columns)


# All


def test_a_second_import_replaces_the_first(imported, folder):
    imported("sample,score\n0-0,1\n0-1,2\n", "scores.csv")

    votes = imported("sample,score\n2-0,1\n2-1,2\n", "scores.csv")

    assert votes["score"].keys() == {2}
    assert [path.name for path in folder.glob("imported-*")] == ["imported-scores.jsonl"]


def test_the_command_says_who_voted(folder, tmp_path, capsys):
    (tmp_path / "scores.csv").write_text(CSV, encoding="utf-8")

    main(["preferences", "import", str(folder), str(tmp_path / "scores.csv")])

    assert capsys.readouterr().out == "aesthetics: 2 prompts\n"
