"""Seeded mutations of files of every kind: each is kept, or is a row with its reason.

EMU3_MUTATIONS says how many of each kind, 1,500 by default; each kind takes minutes.
"""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from support.media import encoded, write_video

from emu3_megatron.prepare.tables import read_table

pytestmark = pytest.mark.slow

MUTATIONS = int(os.environ.get("EMU3_MUTATIONS", "1500"))
IMAGES = {
    "jpg": ("JPEG", {}),
    "png": ("PNG", {}),
    "gif": ("GIF", {"save_all": True}),
    "webp": ("WEBP", {}),
    "tif": ("TIFF", {"compression": "tiff_lzw"}),
    "avif": ("AVIF", {}),
}
VIDEOS = {"mp4": "libx264", "mkv": "libx264", "webm": "libvpx-vp9"}
VALUES = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)


def mutated(data, number):
    """The content with one to eight changes: of bits, bytes and numbers, gaps, copies, ends."""
    chance = random.Random(number)
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        at = chance.randrange(len(found))
        size = chance.choice((1, 2, 4, 16, 64))
        match chance.randrange(7):
            case 0:
                found[at] ^= 1 << chance.randrange(8)
            case 1:
                found[at] = chance.choice(VALUES)
            case 2:
                found[at : at + 4] = bytes([chance.choice(VALUES)] * 4)[: len(found) - at]
            case 3:
                found[at : at + size] = chance.randbytes(size)
            case 4:
                del found[at : at + size]
            case 5:
                found[at:at] = found[at : at + size]
            case 6 if chance.random() < 0.3:
                del found[at:]
        found = found or bytearray(b"\0")
    return bytes(found)


def noise(seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((32, 32), Image.Resampling.BILINEAR)


def seeds(kind, folder):
    """Contents of whole files of a kind."""
    if kind in IMAGES:
        name, settings = IMAGES[kind]
        if settings.get("save_all"):
            settings = {**settings, "append_images": [noise(1)]}
        return [encoded(noise(), name, **settings)]
    if kind in VIDEOS:
        wide = noise().resize((64, 32))
        images = [wide.crop((2 * i, 0, 2 * i + 32, 32)) for i in range(8)]
        return [write_video(folder / f"a.{kind}", images, codec=VIDEOS[kind]).read_bytes()]
    texts = [f"text {i}, 文字 of some words" for i in range(12)]
    if kind == "jsonl":
        return ["".join(json.dumps({"text": t}) + "\n" for t in texts).encode()]
    if kind == "parquet":
        path = folder / "a.parquet"
        pq.write_table(pa.table({"text": texts}), path, row_group_size=4)
        return [path.read_bytes()]
    return [" ".join(texts).encode()]


def write_recipe(path, kind, section, tokenizer):
    values = {
        "out": str(path / "out"),
        "model": "emu3-tiny",
        "tokenizer": str(tokenizer),
        kind: {"source": str(path / "source"), **section},
        "packs": [],
        "run": {"executor": "processes", "stall_seconds": 60},
    }
    (path / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return path / "recipe.yaml"


def prepare(recipe):
    """Run `emu3 prepare`; it ends with status 0 and says nothing like a traceback."""
    command = [sys.executable, "-m", "emu3_megatron", "prepare", "all", str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    assert "Traceback" not in done.stderr + done.stdout, done.stderr[-3000:]


def write_mutations(tmp_path, kind):
    """Names of the files, of which the first is whole."""
    source, whole = tmp_path / "source", tmp_path / "whole"
    source.mkdir()
    whole.mkdir()
    (content,) = seeds(kind, whole)
    contents = [content, *(mutated(content, number) for number in range(MUTATIONS))]
    names = [f"{number:04}.{kind}" for number in range(len(contents))]
    for name, content in zip(names, contents, strict=True):
        (source / name).write_bytes(content)
    return names


def assert_rows(tmp_path, kind, names):
    rows = read_table(tmp_path / "out" / f"{kind}.parquet")
    assert {row["source"] for row in rows} == set(names)
    assert all(row["kept"] or row["reason"] for row in rows)
    assert any(row["kept"] for row in rows)
    unforeseen = {row["reason"] for row in rows if "fails with" in (row["reason"] or "")}
    print(f"{sum(row['kept'] for row in rows)} of {len(rows)} kept", *sorted(unforeseen), sep="\n")


EASY = {"min_quality": 0, "ocr": False, "area": 1024}


@pytest.mark.parametrize("kind", IMAGES)
def test_mutated_images(tmp_path, tokenizer, kind):
    names = write_mutations(tmp_path, kind)
    tokenizer.save(tmp_path / "tokenizer")
    captions = tmp_path / "captions.jsonl"
    captions.write_text(
        "\n".join(json.dumps({"file": n, "caption": n}) for n in names), encoding="utf-8"
    )
    section = {**EASY, "min_side": 8, "near_duplicate_bits": -1}
    section["captions"] = {"manifest": str(captions)}

    prepare(write_recipe(tmp_path, "images", section, tmp_path / "tokenizer"))

    assert_rows(tmp_path, "images", names)


@pytest.mark.parametrize("kind", VIDEOS)
def test_mutated_videos(tmp_path, tokenizer, kind):
    names = write_mutations(tmp_path, kind)
    tokenizer.save(tmp_path / "tokenizer")
    captions = tmp_path / "captions.jsonl"
    captions.write_text(
        "\n".join(json.dumps({"file": n, "caption": n}) for n in names), encoding="utf-8"
    )
    section = {**EASY, "min_seconds": 0.1, "min_flow": 0, "max_flow": 9}
    section["captions"] = {"manifest": str(captions)}

    prepare(write_recipe(tmp_path, "clips", section, tmp_path / "tokenizer"))

    assert_rows(tmp_path, "clips", names)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "txt"])
def test_mutated_texts(tmp_path, tokenizer, kind):
    names = write_mutations(tmp_path, kind)
    tokenizer.save(tmp_path / "tokenizer")

    prepare(write_recipe(tmp_path, "text", {}, tmp_path / "tokenizer"))

    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["kinds"][
        "text"
    ]
    assert report["kept"] + sum(report["set_aside"].values()) == report["found"]
    reasons = [row["reason"] for row in read_table(tmp_path / "out" / "text.parquet")]
    assert all(reason.partition(":")[0] in names for reason in reasons)
    if kind == "txt":  # each is one text
        assert report["found"] == len(names)
    else:  # each file has texts, or a reason
        assert set(report["by_source"]) == set(names)
    print(report["kept"], report["set_aside"])
