# ruff: noqa: RUF001
"""Texts in other languages are left out, and what is personal in the others is masked."""

import json

import pytest

from emu3_megatron.config.prepare import PrepareRecipe
from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.checking import check_prepared
from emu3_megatron.prepare.pipeline import prepare, summary
from emu3_megatron.prepare.reporting import lines_of, report
from emu3_megatron.prepare.tables import read_table
from emu3_megatron.prepare.text_scores import ScoreText

TEXTS = [
    "Write to jane@example.com about the old lighthouse by the sea, or call (212) 555-0143.",
    "Un chat dort sur le canapé rouge, à côté d'un livre. Écrivez à jean@example.fr.",
    "一只猫躺在沙发上，旁边有一本书。联系邮箱test@example.com谢谢",
    "The server at 93.184.216.34 runs version 1.2.3.4 of the program.",
    "The server at 93.184.216.35 runs version 1.2.3.4 of the program.",
]
ENGLISH = (
    "Write to |||EMAIL_ADDRESS||| about the old lighthouse by the sea, or call |||PHONE_NUMBER|||."
)
CHINESE = "一只猫躺在沙发上，旁边有一本书。联系邮箱|||EMAIL_ADDRESS|||谢谢"
SERVER = "The server at |||IP_ADDRESS||| runs version 1.2.3.4 of the program."
BOTH = {"languages": ["en", "zh"], "mask": ["email", "ip", "phone"]}


@pytest.fixture
def run(tmp_path):
    """A function that prepares the texts; returns the folder and the manifest."""
    source = tmp_path / "a.jsonl"
    source.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, 7]), encoding="utf-8"
    )

    def run(out="out", executor="local", **section):
        recipe = PrepareRecipe.model_validate(
            {
                "out": tmp_path / out,
                "model": "emu3-tiny",
                "text": {"source": source, "range_bytes": 200, **section},
                "packs": [{"context": 256, "kinds": ["text"]}],
                "run": {"executor": executor, "workers": 1},
            }
        )
        return recipe.out, prepare(recipe, ["text"])

    return run


def found(out, manifest, vocabulary):
    stores = [
        TokenStore(out / "shards" / shard["name"], vocabulary)
        for shard in manifest["kinds"]["text"]["shards"]
    ]
    return [vocabulary.decode(store.read(i)) for store in stores for i in range(len(store))]


def files(out):
    paths = [*(out / "shards").iterdir(), *out.glob("*.parquet")]
    return {path.name: path.read_bytes() for path in paths}


def test_texts_are_chosen_by_language_and_masked(run, vocabulary):
    out, manifest = run(**BOTH)

    assert found(out, manifest, vocabulary) == [ENGLISH, CHINESE, SERVER]
    entry = manifest["kinds"]["text"]
    assert (entry["found"], entry["kept"]) == (6, 3)
    # Equal once they are masked.
    assert entry["set_aside"] == {"duplicate": 1, "unreadable": 1, "other language": 1}
    assert entry["masked"] == {"emails": 2, "ips": 2, "phones": 1}
    assert "1 other language" in summary(manifest)[0]
    assert summary(manifest)[1] == "text: masked: 2 emails, 2 ips, 1 phones"
    assert "  masked: 2 emails, 2 ips, 1 phones" in lines_of(out, report(out))
    check_prepared(out, deep=True)


def test_each_text_has_its_scores_in_a_table(run):
    out, _ = run(**BOTH)

    rows = read_table(out / "text-scores.parquet")
    assert [row["language"] for row in rows] == ["en", "fr", "zh", "en", "en"]
    assert [row["emails"] for row in rows] == [1, 1, 1, 0, 0]
    assert rows[0]["text"] == "a.jsonl:byte 0"
    assert [bool(row["reason"]) for row in rows] == [False, True, False, False, False]
    assert rows[1]["reason"] == f"other language: fr ({rows[1]['language_score']:.2f})"


def test_a_threshold_changes_without_new_scores(run, monkeypatch, vocabulary):
    run(languages=["en", "zh"])
    monkeypatch.setattr(ScoreText, "__call__", None)

    out, manifest = run(languages=["fr"], min_language_score=0.1)

    assert found(out, manifest, vocabulary) == [TEXTS[1]]
    assert manifest["kinds"]["text"]["set_aside"]["other language"] == 4


def test_without_filters_nothing_is_scored_and_an_earlier_table_goes(run, vocabulary):
    run(**BOTH)

    out, manifest = run()

    assert found(out, manifest, vocabulary) == TEXTS
    assert not (out / "text-scores.parquet").exists()


@pytest.mark.parametrize("executor", ["processes", pytest.param("ray", marks=pytest.mark.slow)])
def test_other_executors_and_a_second_run_write_the_same(run, executor):
    alone, _ = run("alone", **BOTH)
    out, manifest = run("other", executor=executor, **BOTH)
    before = files(out)

    assert before == files(alone)
    assert run("other", executor=executor, **BOTH)[1] == manifest
    assert files(out) == before


def test_an_unknown_language_is_refused(run):
    with pytest.raises(InputError, match=r"text.languages: no language 'english'"):
        run(languages=["english"])
