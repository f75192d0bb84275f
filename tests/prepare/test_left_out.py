"""What is read of a folder, and what is left out of it and counted."""

import gzip
import json
import os
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.media import encoded, write_video

from emu3_megatron.config.prepare import PrepareRecipe
from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.media.files import path_of
from emu3_megatron.prepare.pipeline import prepare, summary
from emu3_megatron.prepare.tables import read_table


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def run(tmp_path, tokenizer):
    """A function that prepares one kind of the folder `source`; returns what the manifest says."""
    tokenizer.save(tmp_path / "tokenizer")
    easy = {"min_quality": 0, "ocr": False, "area": 1024}
    sections = {
        "images": {**easy, "min_side": 32, "near_duplicate_bits": -1},
        "clips": {**easy, "min_seconds": 0.5, "min_flow": 0, "max_flow": 9},
    }

    def run(kind, **section):
        recipe = PrepareRecipe.model_validate(
            {
                "out": tmp_path / "out",
                "model": "emu3-tiny",
                "tokenizer": tmp_path / "tokenizer",
                kind: {"source": tmp_path / "source", **sections.get(kind, {}), **section},
                "packs": [],
                "run": {"executor": "local"},
            }
        )
        manifest = prepare(recipe, [kind])
        return manifest["kinds"][kind], summary(manifest)

    return run


def picture(seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((64, 48), Image.Resampling.NEAREST)


def write(path, content, caption="a caption"):
    path.write_bytes(content)
    path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def table(tmp_path, kind):
    return {row["source"]: row for row in read_table(tmp_path / "out" / f"{kind}.parquet")}


KINDS = {
    "jfif": "JPEG",
    "jpe": "JPEG",
    "avif": "AVIF",
    "jp2": "JPEG2000",
    "tga": "TGA",
    "ppm": "PPM",
    "pgm": "PPM",
}


def test_pictures_are_read_under_every_suffix_and_under_that_of_another_kind(run, source, tmp_path):
    for i, (suffix, kind) in enumerate(KINDS.items()):
        write(source / f"{i}.{suffix}", encoded(picture(i), kind))
    for i, (name, kind) in enumerate(
        [("png.jpg", "PNG"), ("avif.png", "AVIF"), ("without", "PNG"), ("too", "WEBP")]
    ):
        write(source / name, encoded(picture(100 + i), kind))

    entry, _ = run("images")

    assert {name: row["reason"] for name, row in table(tmp_path, "images").items()} == (
        dict.fromkeys(
            [f"{i}.{suffix}" for i, suffix in enumerate(KINDS)]
            + ["png.jpg", "avif.png", "without", "too"]
        )
    )
    assert entry["left_out"] == {}


def test_a_dark_picture_of_16_bits_stays_dark(tmp_path):
    from emu3_megatron.media.images import decode_image

    dark = b"P5 2 1 65535\n" + bytes([0, 200, 0x80, 0])

    assert np.asarray(decode_image(dark, "a.pgm").image)[0, :, 0].tolist() == [1, 128]


VIDEOS = {
    "mpg": ("mpeg1video", "mpeg", {"time_base": Fraction(1, 25)}),
    "ts": ("libx264", "mpegts", {}),
    "flv": ("flv", "flv", {}),
    "wmv": ("wmv2", "asf", {}),
    "3gp": ("libx264", "3gp", {}),
    "ogv": ("libvpx", "ogg", {}),
}


def test_videos_are_read_under_every_suffix(run, source, tmp_path):
    wide = picture().resize((256, 48))
    images = [wide.crop((i, 0, i + 64, 48)) for i in range(16)]
    times = [i / 25 for i in range(16)]
    for suffix, (codec, kind, more) in VIDEOS.items():
        write_video(source / f"a.{suffix}", images, times, codec=codec, kind=kind, **more)
    (source / "a.txt").write_text("it moves", encoding="utf-8")

    run("clips")

    reasons = {name: row["reason"] for name, row in table(tmp_path, "clips").items()}
    assert reasons == dict.fromkeys(f"a.{suffix}" for suffix in VIDEOS)


def test_what_is_left_out_is_counted_and_said(run, source):
    write(source / "a.png", encoded(picture()))
    for name in ("b.svg", "c.SVG", "d.json.gz", "notes", "alone.txt"):
        (source / name).write_text("no picture", encoding="utf-8")
    (source / "captions.jsonl").write_text(
        json.dumps({"file": "a.png", "caption": "one"}), encoding="utf-8"
    )
    (source / "gone.png").symlink_to("nothing")

    entry, lines = run("images", captions={"manifest": source / "captions.jsonl"})

    assert entry["left_out"] == {
        ".json.gz": 1,
        ".svg": 2,
        ".txt": 1,
        "links to nothing": 1,
        "without a suffix": 1,
    }
    assert lines[1] == (
        "images: files left out by their suffix: 2 .svg, 1 .json.gz, 1 .txt, 1 links to nothing, "
        "1 without a suffix"
    )


def test_linked_folders_are_followed_once(run, source, tmp_path):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (source / "own").mkdir()
    write(tmp_path / "elsewhere" / "deep" / "a.png", encoded(picture(1)))
    write(source / "own" / "b.png", encoded(picture(2)))
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "also").symlink_to(source / "own")
    (tmp_path / "elsewhere" / "deep" / "loop").symlink_to(source)

    run("images")

    assert sorted(table(tmp_path, "images")) == ["linked/deep/a.png", "own/b.png"]


def read_back(tmp_path, entry, vocabulary):
    stores = [TokenStore(tmp_path / "out" / "shards" / s["name"], vocabulary) for s in entry]
    return [vocabulary.decode(store.read(i)) for store in stores for i in range(len(store))]


LINES = [f"line {i} " + "text 文字 " * (i % 7) for i in range(200)]


def compress(name, data):
    if name.endswith(".zst"):
        half = len(data) // 2  # two frames, as parallel compressors write them
        return b"".join(pa.compress(d, "zstd", asbytes=True) for d in (data[:half], data[half:]))
    return gzip.compress(data)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.ndjson.zst", "by_content.jsonl"])
def test_compressed_lines_are_read_as_plain_ones(run, source, tmp_path, vocabulary, name):
    data = "".join(json.dumps({"text": line}) + "\n" for line in LINES).encode()
    (source / name).write_bytes(compress(name, data))

    entry, _ = run("text", range_bytes=1000)

    texts = read_back(tmp_path, entry["shards"], vocabulary)
    assert len(texts) == len(LINES)
    assert all(line.strip() in text for line, text in zip(LINES, texts, strict=True))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_of_a_compressed_file_that_breaks_off_the_lines_before_are_kept(
    run, source, tmp_path, name
):
    random = np.random.default_rng(0)
    texts = [random.bytes(50).hex() for _ in range(20_000)]
    data = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    whole = compress(name, data)
    (source / name).write_bytes(whole[: int(0.9 * len(whole))])
    (source / "b.txt").write_text("another", encoding="utf-8")

    entry, _ = run("text", range_bytes=200_000)

    assert 1000 < entry["kept"] < len(texts)
    (row,) = read_table(tmp_path / "out" / "text.parquet")
    assert row["reason"].startswith(f"{name}: byte ")
    assert "Truncated" in row["reason"]


def test_texts_of_other_kinds_are_counted(run, source):
    (source / "a.ndjson").write_text('{"text": "one"}\n', encoding="utf-8")
    for name in ("README.md", "b.csv", "c.json", "d.txt.gz"):
        (source / name).write_text("no text", encoding="utf-8")

    entry, _ = run("text")

    assert (entry["kept"], entry["left_out"]) == (
        1,
        {".csv": 1, ".json": 1, ".md": 1, ".txt.gz": 1},
    )


def test_scores_find_their_files_by_every_spelling_of_a_name(run, source, tmp_path):
    names = [b"latin-\xe9.png", "e\u0301.png".encode(), b"dot.png"]
    for i, name in enumerate(names):
        write(source / os.fsdecode(name), encoded(picture(i)))
    rows = [
        {"file": r"latin-\xe9.png", "a": 1},
        {"file": "\u00e9.png", "a": 2},
        {"file": "./dot.png", "a": 3},
    ]
    scores = tmp_path / "scores.jsonl.gz"
    scores.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))

    run("images", select={"table": scores, "columns": {"a": 1}, "at_least": 0})

    found = table(tmp_path, "images")
    assert {name: row["score"] for name, row in found.items()} == {
        r"latin-\xe9.png": 1,
        "e\u0301.png": 2,
        "dot.png": 3,
    }
    assert all(path_of(source, name).is_file() for name in found)


def test_rows_find_their_images_by_every_spelling_of_a_name(run, source, tmp_path):
    names = [b"latin-\xe9.png", "e\u0301.png".encode(), b"dot.png"]
    for i, name in enumerate(names):
        write(source / os.fsdecode(name), encoded(picture(i)))
    rows = [
        {
            "image": name,
            "messages": [
                {"role": "user", "content": "<image>what?"},
                {"role": "assistant", "content": "a picture"},
            ],
        }
        for name in (r"latin-\xe9.png", "\u00e9.png", "./dot.png")
    ]
    listed = source / os.fsdecode(b"rows-\xe9.ndjson.gz")
    listed.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))

    entry, _ = run("dialogues", min_area=1024, max_area=4096)

    assert entry["kept"] == 3
    found = read_table(tmp_path / "out" / "dialogues.parquet")
    assert {row["source"] for row in found} == {r"rows-\xe9.ndjson.gz"}


def test_texts_and_videos_under_names_that_are_no_utf8(run, source, tmp_path):
    pq.write_table(pa.table({"text": ["one", "two"]}), source / "a.parquet")
    (source / "a.parquet").rename(source / os.fsdecode(b"a-\xe9.parquet"))
    wide = picture().resize((256, 48))
    write_video(source / "a.mp4", [wide.crop((i, 0, i + 64, 48)) for i in range(16)])
    (source / "a.mp4").rename(source / os.fsdecode(b"a-\xe9.mp4"))
    (source / os.fsdecode(b"a-\xe9.txt")).write_text("three", encoding="utf-8")

    assert run("text")[0]["kept"] == 3
    assert run("clips")[0]["kept"] == 1
