"""The report on a prepared folder: of finished runs and of others, without computing anew."""

import json

import pytest

from emu3_megatron.cli.app import main
from emu3_megatron.config.prepare import PrepareRecipe
from emu3_megatron.errors import InputError
from emu3_megatron.prepare import images
from emu3_megatron.prepare.pipeline import prepare
from emu3_megatron.prepare.reporting import report


@pytest.fixture
def recipe(tmp_path, tokenizer, add_photo):
    tokenizer.save(tmp_path / "tokenizer")
    photos, texts = add_photo("a", "one", seed=1), tmp_path / "texts"
    add_photo("b", "two", size=(300, 32), seed=2)
    (photos / "more").mkdir()
    (photos / "a.png").rename(photos / "more" / "a.png")
    (photos / "a.txt").rename(photos / "more" / "a.txt")
    (photos / "c.jpg").write_bytes(b"no picture")
    (photos / "d.svg").write_text("<svg>", encoding="utf-8")
    texts.mkdir()
    (texts / "lines.jsonl").write_text(
        '{"text": "one"}\n{"text": "one"}\nno json\n', encoding="utf-8"
    )
    (texts / "a.txt").write_text("two", encoding="utf-8")
    easy = {"min_side": 32, "min_quality": 0, "ocr": False, "area": 1536}
    return PrepareRecipe.model_validate(
        {
            "out": tmp_path / "out",
            "model": "emu3-tiny",
            "tokenizer": tmp_path / "tokenizer",
            "images": {"source": photos, **easy},
            "text": {"source": texts},
            "packs": [],
            "run": {"executor": "local"},
        }
    )


def test_a_finished_run_is_reported_by_suffix_and_source(recipe, capsys):
    prepare(recipe, ["images", "text"])

    main(["prepare", "--report", str(recipe.out)])

    found = json.loads((recipe.out / "report.json").read_text(encoding="utf-8"))
    photos, texts = found["kinds"]["images"], found["kinds"]["text"]
    assert found["finished"]
    assert (photos["found"], photos["kept"]) == (3, 1)
    assert photos["set_aside"] == {"too narrow": 1, "unreadable": 1}
    assert photos["left_out"] == {".svg": 1}
    assert photos["by_suffix"] == {
        ".jpg": {"found": 1, "kept": 0},
        ".png": {"found": 2, "kept": 1},
    }
    assert photos["by_source"] == {".": {"found": 2, "kept": 0}, "more/": {"found": 1, "kept": 1}}
    assert texts["set_aside"] == {"duplicate": 1, "unreadable": 1}
    assert texts["by_source"] == {
        ".": {"found": 1, "kept": 1},
        "lines.jsonl": {"found": 3, "kept": 1},
    }
    assert set(found["stages"]) >= {"images: scores", "images: tokens", "text: tokens"}
    assert all(about["seconds"] > 0 for about in found["stages"].values())
    shown = capsys.readouterr().out
    assert f"{recipe.out}: finished\n" in shown
    assert "images: 1 of 3 kept, 1 documents" in shown
    assert "  lines.jsonl      3     1\n" in shown


def test_a_run_that_does_nothing_changes_no_report(recipe):
    prepare(recipe, ["images", "text"])
    before = (recipe.out / "report.json").read_bytes()

    prepare(recipe, ["images", "text"])

    assert (recipe.out / "report.json").read_bytes() == before


def test_an_unfinished_run_says_so(recipe, monkeypatch, capsys):
    prepare(recipe, ["text"])
    monkeypatch.setattr(images, "decode_image", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))

    with pytest.raises(KeyboardInterrupt):
        prepare(recipe, ["images"])

    main(["prepare", "--report", str(recipe.out)])
    found = json.loads((recipe.out / "report.json").read_text(encoding="utf-8"))
    assert (found["finished"], found["unfinished_kinds"]) == (False, ["images"])
    assert set(found["kinds"]) == {"text"}
    assert found["stages"]["images: scores"]["done"] == 0
    assert "the last run, of images, has not ended: the same command goes on" in (
        capsys.readouterr().out
    )


def test_a_folder_of_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no prepared data"):
        report(tmp_path)
