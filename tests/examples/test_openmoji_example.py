"""examples/openmoji: one skin tone of each object is tested and is not trained."""

import io
import json
import runpy
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "openmoji" / "fetch.py"
COLOURS = ["", "#fff", "#ecb", "#cba", "#987", "#543"]


def emoji(code, base="", tone="", colour="red"):
    """A row of OpenMoji's table, and its drawing."""
    drawing = f'<rect width="1" height="2" fill="{colour}"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2">{drawing}</svg>'
    row = {"hexcode": code, "skintone": tone, "skintone_base_hexcode": base}
    return row, svg


@pytest.fixture
def archive(tmp_path):
    hands = [emoji(f"1F44B-{tone}", "1F44B", tone, COLOURS[tone]) for tone in range(1, 6)]
    pairs = [
        emoji(f"1F44B-{one}-{two}", "1F44B", f"{one},{two}", f"#{one}{two}0")
        for one in range(1, 6)
        for two in range(1, 6)
        if one != two
    ]
    gloves = [emoji(f"1F9E4-{tone}", "1F9E4", tone, "blue") for tone in range(1, 6)]
    found = [emoji("1F600"), emoji("1F44B", colour="yellow"), *hands, *pairs, *gloves]
    with tarfile.open(tmp_path / "openmoji.tgz", "w:gz") as file:
        add(file, "package/data/openmoji.json", json.dumps([row for row, _ in found]))
        for row, svg in found:
            add(file, f"package/color/svg/{row['hexcode']}.svg", svg)
    return tmp_path / "openmoji.tgz"


def add(archive, name, text):
    info = tarfile.TarInfo(name)
    info.size = len(text)
    archive.addfile(info, io.BytesIO(text.encode()))


def fetch(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["fetch.py", *map(str, words)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_the_tested_tone_of_an_object_is_not_trained(tmp_path, archive, monkeypatch, capsys):
    fetch(monkeypatch, tmp_path / "out", archive)

    train, test = ({p.stem: p for p in (tmp_path / "out" / n).iterdir()} for n in ("train", "test"))
    assert {"1F600", "1F44B"} <= set(train)
    (tested,) = (code.split("-")[1] for code in test if code.startswith("1F44B"))
    toned = [code for code in train if code.startswith("1F44B-")]
    assert len(toned) == 4 + 12
    assert all(tested not in code.split("-")[1:] for code in toned)
    assert not any(code.startswith("1F9E4") for code in train)  # all five look like the tested one
    assert "18 to train, 2 to test, 12 left out" in capsys.readouterr().out


def test_a_folder_with_something_in_it_is_refused(tmp_path, archive, monkeypatch):
    (tmp_path / "mine.png").touch()

    with pytest.raises(SystemExit, match="nothing is overwritten"):
        fetch(monkeypatch, tmp_path, archive)
