"""`emu3 prepare dialogues`, `emu3 check` and `emu3 inspect data` on what it made."""

import json

import pytest
from PIL import Image

from emu3_megatron.cli import main


@pytest.fixture
def rows(tmp_path, tokenizer):
    """A row about an image, one with an image too many, and one of text."""
    tokenizer.save(tmp_path / "tokenizer")
    Image.new("RGB", (40, 32), "orange").save(tmp_path / "a.png")
    messages = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "Red."},
    ]
    text = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    rows = [
        {"conversations": messages, "image": "a.png"},
        {"conversations": messages, "image": ["a.png", "a.png"]},
        {"messages": text},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path / "rows.json"


@pytest.fixture
def command(rows, tmp_path):
    small = ["dialogues.min_area=1024", "dialogues.max_area=4096", "run.executor=local"]
    tiny = ["model=emu3-tiny", "packs=[{context: 128, kinds: [dialogues]}]"]
    paths = ["--source", rows, "--out", tmp_path / "out", "--tokenizer", tmp_path / "tokenizer"]
    return ["prepare", "dialogues", *small, *tiny, *map(str, paths)]


def test_an_odd_row_is_one_line(command, rows, capsys):
    with pytest.raises(SystemExit) as exit:
        main(command)

    assert exit.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"emu3: {rows}: row 1: images and marks: 2 images, 1 <image> marks; repair the row, or set "
        "odd rows aside with --skip-bad"
    )


def test_what_was_prepared_is_whole_and_shown(command, tmp_path, capsys):
    main([*command, "--skip-bad"])
    said = capsys.readouterr().out
    assert "dialogues: 2 of 3 kept" in said
    assert "set aside: 1 images and marks" in said

    main(["check", str(tmp_path / "out"), "--deep"])
    assert "(valid)" in capsys.readouterr().out

    page = tmp_path / "data.html"
    shown = ["--out", str(page), "--tokenizer", str(tmp_path / "tokenizer")]
    main(["inspect", "data", str(tmp_path / "out"), *shown])
    text = page.read_text(encoding="utf-8")
    assert "<p>What is it?. ASSISTANT:</p><p>→ Red.</p>" in text
    assert "rows.json: row 2" in text
    assert "images and marks: 2 images, 1 &lt;image&gt; marks" in text
    assert text.count("<img") == 1
