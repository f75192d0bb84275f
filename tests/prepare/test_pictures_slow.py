"""Folders of real pictures: every file is kept, or is a row with its reason, or is counted.

EMU3_PICTURES names such folders, separated by colons; docs/data.md says where to get some.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from emu3_megatron.media.files import IMAGE_SUFFIXES, suffix_of
from emu3_megatron.prepare.tables import read_table

pytestmark = pytest.mark.slow

STAMPS = "/usr/share/tuxpaint/stamps"
FOLDERS = [f for f in os.environ.get("EMU3_PICTURES", STAMPS).split(":") if Path(f).is_dir()]


@pytest.mark.skipif(not FOLDERS, reason="EMU3_PICTURES names no folder of pictures")
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_picture_is_kept_or_says_why_not(tmp_path, tokenizer, folder):
    tokenizer.save(tmp_path / "tokenizer")
    files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    pictures = [path for path in files if suffix_of(path) in IMAGE_SUFFIXES]
    names = [path.relative_to(folder).as_posix() for path in pictures]
    captions = tmp_path / "captions.jsonl"
    captions.write_text(
        "\n".join(json.dumps({"file": name, "caption": name}) for name in names), encoding="utf-8"
    )
    recipe = {
        "out": str(tmp_path / "out"),
        "model": "emu3-tiny",
        "tokenizer": str(tmp_path / "tokenizer"),
        "images": {
            "source": folder,
            "captions": {"manifest": str(captions)},
            "min_side": 8,
            "min_quality": 0,
            "ocr": False,
            "area": 1024,
        },
        "packs": [],
        "run": {"executor": "processes"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "emu3_megatron", "prepare", "images"]

    done = subprocess.run(
        [*command, tmp_path / "recipe.yaml"], capture_output=True, text=True, encoding="utf-8"
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr + done.stdout
    rows = read_table(tmp_path / "out" / "images.parquet")
    inside = {row["source"] for row in rows if "!" in row["source"]}
    tars = {source.partition("!")[0] for source in inside}
    assert tars <= {path.relative_to(folder).as_posix() for path in files}
    assert {row["source"] for row in rows} == {*names, *inside}
    assert all(row["kept"] or row["reason"] for row in rows)
    left_out = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["kinds"][
        "images"
    ]
    captioned = {path.with_suffix(".txt") for path in pictures}
    read = {*pictures, *captioned, *(Path(folder) / tar for tar in tars)}
    others = [path for path in files if path not in read]
    assert sum(left_out["left_out"].values()) == len(others)
    print(done.stdout, Counter(row["reason"] for row in rows if row["reason"]), sep="\n")
