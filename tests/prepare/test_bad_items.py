"""One bad item never stops a run, at whatever stage it fails, and is always named."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from support.media import encoded

from emu3_megatron.config.prepare import PrepareRecipe
from emu3_megatron.errors import InputError
from emu3_megatron.media.files import path_of
from emu3_megatron.media.writers import write_clip
from emu3_megatron.prepare import clip_codes, clips, images
from emu3_megatron.prepare.checking import check_prepared
from emu3_megatron.prepare.inspecting import write_page
from emu3_megatron.prepare.pipeline import prepare
from emu3_megatron.prepare.tables import read_table

EASY = {"min_quality": 0, "ocr": False, "area": 1536}


@pytest.fixture
def recipe(tmp_path, tokenizer):
    """A function that makes a recipe of one kind over the folder `source`."""
    (tmp_path / "source").mkdir()
    tokenizer.save(tmp_path / "tokenizer")

    def make(kind, strict=False, **section):
        if kind == "clips":
            section = {"min_seconds": 1, "min_flow": 0, "max_flow": 9, **section}
        return PrepareRecipe.model_validate(
            {
                "out": tmp_path / "out",
                "model": "emu3-tiny",
                "tokenizer": tmp_path / "tokenizer",
                "strict": strict,
                kind: {"source": tmp_path / "source", **EASY, **section},
                "packs": [],
                "run": {"executor": "local"},
            }
        )

    return make


def photo(path, seed=0, caption="a caption"):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(coarse).resize((64, 48), Image.Resampling.NEAREST).save(path)
    path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def video(path, seed=0):
    """Two seconds of a picture that moves."""
    torch.manual_seed(seed)
    wide = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 16) * 2 - 1, (48, 128))
    write_clip(path, torch.cat([wide[..., i : i + 64] for i in range(16)]), fps=8)
    path.with_suffix(".txt").write_text("it moves", encoding="utf-8")


def reasons(out, kind):
    rows = read_table(out / f"{kind}.parquet")
    return {row["source"]: row["reason"] for row in rows if not row["kept"]}


def test_damaged_photos_are_rows(recipe, tmp_path):
    source = tmp_path / "source"
    photo(source / "good.png")
    gif = encoded(Image.effect_noise((64, 48), 50), "GIF")
    avif = encoded(Image.effect_noise((64, 48), 50).convert("RGB"), "AVIF")
    tiff = bytearray(encoded(Image.effect_noise((64, 48), 50), "TIFF"))
    tiff[8:40] = bytes(32)
    for name, content in {"a.gif": gif[:500], "b.jpg": avif[:300], "c.tif": tiff}.items():
        (source / name).write_bytes(content)
        (source / name).with_suffix(".txt").write_text("a caption", encoding="utf-8")

    manifest = prepare(recipe("images", min_side=32), ["images"])

    assert manifest["kinds"]["images"]["kept"] == 1
    found = reasons(tmp_path / "out", "images")
    assert set(found) == {"a.gif", "b.jpg", "c.tif"}
    assert all(reason.startswith("unreadable: ") for reason in found.values())


def fail_at(number, function):
    """The function, which fails the first so many times that it is called."""
    calls = iter(range(number))

    def work(*arguments, **named):
        if next(calls, None) is not None:
            raise IndexError("out of range")
        return function(*arguments, **named)

    return work


REASON = "unreadable: fails with IndexError (out of range)"


@pytest.mark.parametrize("stage", ["colourfulness", "resize_to_area", "captioned_image"])
def test_a_photo_that_fails_at_any_stage_is_a_row(recipe, tmp_path, monkeypatch, stage):
    for i in range(3):
        photo(tmp_path / "source" / f"{i}.png", seed=i)
    monkeypatch.setattr(images, stage, fail_at(1, getattr(images, stage)))

    manifest = prepare(recipe("images", min_side=32), ["images"])

    assert reasons(tmp_path / "out", "images") == {"0.png": REASON}
    entry = manifest["kinds"]["images"]
    assert (entry["kept"], entry["set_aside"]) == (2, {"unreadable": 1})
    assert entry["shards"][0]["documents"] == 2
    check_prepared(tmp_path / "out", deep=True)
    write_page(tmp_path / "out", tmp_path / "page.html", None, 4)
    with pytest.raises(InputError, match=r"0\.png: .*IndexError.*; repair it, or let it"):
        prepare(recipe("images", min_side=32, strict=True), ["images"])


@pytest.mark.parametrize(
    ("module", "stage"),
    [(clips, "find_shots"), (clip_codes, "clip_pieces"), (clips, "captioned_clip")],
)
def test_a_video_that_fails_at_any_stage_is_a_row(recipe, tmp_path, monkeypatch, module, stage):
    for i in range(3):
        video(tmp_path / "source" / f"{i}.mp4", seed=i)
    monkeypatch.setattr(module, stage, fail_at(1, getattr(module, stage)))

    manifest = prepare(recipe("clips"), ["clips"])

    assert reasons(tmp_path / "out", "clips") == {"0.mp4": REASON}
    assert manifest["kinds"]["clips"]["kept"] == 2
    check_prepared(tmp_path / "out", deep=True)
    with pytest.raises(InputError, match=r"0\.mp4: .*IndexError.*; repair it, or let it"):
        prepare(recipe("clips", strict=True), ["clips"])


def test_a_video_of_an_unknown_codec_is_a_row(recipe, tmp_path):
    for i in range(2):
        video(tmp_path / "source" / f"{i}.mp4", seed=i)
    data = (tmp_path / "source" / "0.mp4").read_bytes()
    (tmp_path / "source" / "0.mp4").write_bytes(data.replace(b"avc1", b"none"))

    prepare(recipe("clips"), ["clips"])

    assert reasons(tmp_path / "out", "clips") == {"0.mp4": "unreadable: its codec is not known"}


def test_a_damaged_video_has_the_same_frames_in_scores_and_codes(recipe, tmp_path):
    for name in ("whole.mp4", "hurt.mp4"):
        video(tmp_path / "source" / name)
    data = bytearray((tmp_path / "source" / "hurt.mp4").read_bytes())
    end = data.index(b"moov") - 4
    data[end - 150 : end] = b"\xff" * 150
    (tmp_path / "source" / "hurt.mp4").write_bytes(data)

    manifest = prepare(recipe("clips", min_seconds=0.5), ["clips"])

    rows = {row["source"]: row for row in read_table(tmp_path / "out" / "clips.parquet")}
    assert rows["hurt.mp4"]["kept"]
    assert 4 <= rows["hurt.mp4"]["end_frame"] < rows["whole.mp4"]["end_frame"] == 16
    assert manifest["kinds"]["clips"]["kept"] == 2


def test_a_caption_that_is_no_text_sets_its_photo_aside(recipe, tmp_path):
    for i in range(2):
        photo(tmp_path / "source" / f"{i}.png", seed=i)
    listed = tmp_path / "captions.jsonl"
    listed.write_text(
        json.dumps({"file": "0.png", "caption": "half of a pair: \ud83d"}), encoding="utf-8"
    )

    section = {"min_side": 32, "captions": {"manifest": listed}}
    prepare(recipe("images", **section), ["images"])

    assert reasons(tmp_path / "out", "images") == {"0.png": "no caption: not UTF-8 text"}
    with pytest.raises(InputError, match=r"0\.png: no caption: not UTF-8 text; repair"):
        prepare(recipe("images", strict=True, **section), ["images"])


def test_names_of_every_kind_are_kept_and_find_their_captions(recipe, tmp_path):
    source = tmp_path / "source"
    names = [
        b"latin-\xe9.png",
        rb"not-\xe9.png",
        b"a: colon.png",
        "e\u0301.png".encode(),
        b"dot.png",
    ]
    for i, name in enumerate(names):
        photo(source / os.fsdecode(name), seed=i)
    for name in ("e\u0301.txt", "dot.txt"):
        (source / name).unlink()
    (source / "dot.txt").mkdir()  # a folder is no caption
    listed = tmp_path / "captions.jsonl"
    rows = [{"file": "\u00e9.png", "caption": "b"}, {"file": "./dot.png", "caption": "c"}]
    listed.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    prepare(recipe("images", min_side=32, captions={"manifest": listed}), ["images"])

    found = read_table(tmp_path / "out" / "images.parquet")
    assert all(row["kept"] for row in found)
    written = [row["source"] for row in found]
    assert r"latin-\xe9.png" in written
    assert r"not-\x5cxe9.png" in written
    assert sorted(os.fsencode(path_of(source, name).name) for name in written) == sorted(names)
    write_page(tmp_path / "out", tmp_path / "page.html", None, 9)
    assert r"latin-\xe9.png" in (tmp_path / "page.html").read_text(encoding="utf-8")
