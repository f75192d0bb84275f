"""The page on prepared data: what must be on it."""

import json
import re

import pytest

from emu3_megatron.cli import main
from emu3_megatron.config.prepare import PrepareRecipe
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.inspecting import rows_of_documents, write_page
from emu3_megatron.prepare.pipeline import prepare


@pytest.fixture
def prepared(tmp_path, tokenizer, add_photo):
    """A photo that is kept, one that is too small, and a text."""
    photos = add_photo("good", "a <good> photo", size=(64, 48))
    add_photo("small", "a small one", size=(16, 16))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text(
        json.dumps({"text": "some words"}), encoding="utf-8"
    )
    tokenizer.save(tmp_path / "tokenizer")
    images = {"source": photos, "min_side": 32, "min_quality": 0, "ocr": False, "area": 1536}
    recipe = {
        "out": tmp_path / "out",
        "model": "emu3-tiny",
        "tokenizer": tmp_path / "tokenizer",
        "images": images,
        "text": {"source": tmp_path / "texts"},
        "packs": [{"context": 128, "kinds": ["images", "text"]}],
        "run": {"executor": "local"},
    }
    prepare(PrepareRecipe.model_validate(recipe), ["images", "text"])
    return tmp_path / "out"


def test_the_page_shows_samples_reasons_and_plots(prepared, tmp_path):
    page = tmp_path / "data.html"
    saved = str(tmp_path / "tokenizer")
    main(["inspect", "data", str(prepared), "--out", str(page), "--tokenizer", saved])

    text = page.read_text(encoding="utf-8")
    assert "a &lt;good&gt; photo" in text
    assert "some words" in text
    assert "small.png</td><td>too small: 16x16" in text
    assert re.search(r"<figcaption>good\.png<br>quality [\d.]+, colour [\d.]+<br>images-", text)
    for plot in ("fill of images-text-128", "tokens a document", "quality", "colour"):
        assert f"<figcaption>{plot}</figcaption><svg" in text
    assert len(re.findall(r"<img", text)) == 1


def test_without_a_tokenizer_no_image_is_drawn(prepared, tmp_path):
    write_page(prepared, tmp_path / "data.html", None, samples=4)

    assert "<img" not in (tmp_path / "data.html").read_text(encoding="utf-8")


def test_a_document_belongs_to_the_row_it_was_made_of():
    rows = [
        {"source": "a.png", "kept": True, "captions": ["one", "two"]},
        {"source": "b.png", "kept": False, "captions": []},
        {"source": "c.png", "kept": True, "captions": ["three"]},
    ]

    def sources(share):
        entry = {"settings": {"understanding": share}}
        return [row["source"][0] for row in rows_of_documents("images", entry, rows)]

    assert sources(0.0) == ["a", "a", "c"]
    assert sources(1.0) == ["a", "a", "a", "a", "c", "c"]


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no prepared data"):
        write_page(tmp_path, tmp_path / "data.html", None, samples=4)
