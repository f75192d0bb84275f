"""Photos from a folder to shards and packs: decisions, resumption, the same bytes."""

import errno
import shutil

import numpy as np
import pytest
from PIL import Image

from emu3_megatron.config.prepare import ImagesConfig, PrepareRecipe
from emu3_megatron.data.check import check
from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import Vision, parse
from emu3_megatron.prepare import executors
from emu3_megatron.prepare.images import EncodeImages, ScoreImages, decide_images
from emu3_megatron.prepare.pipeline import prepare
from emu3_megatron.prepare.scores.duplicates import SIGNATURE
from emu3_megatron.prepare.tables import read_table
from emu3_megatron.prepare.workspace import stable_chunks


@pytest.fixture(scope="session")
def saved_tokenizer(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return folder


def photo(folder, name, seed, size=(64, 48), caption=None):
    """Soft blobs of colour: sharp enough to keep, each seed another picture."""
    folder.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST).save(folder / f"{name}.png")
    if caption:
        (folder / f"{name}.txt").write_text(caption, encoding="utf-8")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for i in range(7):
        photo(folder, f"photo{i}", i, caption=f"number {i}")
    return folder


@pytest.fixture
def recipe(tmp_path, photos, saved_tokenizer):
    """A function that makes a recipe over the photos, changed by sections."""

    def make(out="out", images=(), **values):
        section = {"source": photos, "min_side": 32, "min_quality": 0, "ocr": False, "area": 1536}
        base = {
            "out": tmp_path / out,
            "model": "emu3-tiny",
            "tokenizer": saved_tokenizer,
            "images": {**section, **dict(images)},
            "packs": [{"context": 256, "kinds": ["images"]}],
            "run": {"executor": "local", "task_items": 2},
        }
        return PrepareRecipe.model_validate({**base, **values})

    return make


def shards(recipe):
    return {path.name: path.read_bytes() for path in (recipe.out / "shards").iterdir()}


def documents(recipe, manifest, vocabulary):
    stores = [
        TokenStore(recipe.out / "shards" / shard["name"], vocabulary)
        for shard in manifest["kinds"]["images"]["shards"]
    ]
    return [parse(vocabulary, s.document(i).tokens) for s in stores for i in range(len(s))]


def test_photos_become_shards_and_packs(recipe, vocabulary):
    manifest = prepare(recipe(), ["images"])

    found = documents(recipe(), manifest, vocabulary)
    assert [caption for caption, _ in found] == [f"number {i}" for i in range(7)]
    assert all(isinstance(vision, Vision) for _, vision in found)
    assert "sound" not in check(recipe().out / manifest["packs"][0]["path"], vocabulary, deep=True)
    assert manifest["packs"][0]["documents"] == 7


def test_shards_are_cut_to_their_size(recipe):
    manifest = prepare(recipe(shard_bytes=800), ["images"])

    assert [shard["documents"] for shard in manifest["kinds"]["images"]["shards"]] == [4, 3]


def test_held_out_photos_have_shards_and_packs_of_their_own(recipe, vocabulary):
    manifest = prepare(recipe(holdout=0.4), ["images"])

    entry = manifest["kinds"]["images"]
    rows = read_table(recipe().out / "images.parquet")
    held = sum(row["held_out"] for row in rows)
    assert 0 < held < 7
    assert entry["held_out"]["kept"] == held
    assert [pack["documents"] for pack in manifest["packs"]] == [7 - held]
    (pack,) = manifest["held_out_packs"]
    assert "packs of" in check(recipe().out / pack["path"], vocabulary, deep=True)
    assert pack["documents"] == held


def test_every_drop_has_a_reason(recipe, photos):
    photo(photos, "small", 20, size=(16, 16), caption="small")
    photo(photos, "narrow", 21, size=(320, 40), caption="narrow")
    photo(photos, "mute", 22)
    shutil.copy(photos / "photo3.png", photos / "twin.png")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 not a photo")

    manifest = prepare(recipe(), ["images"])

    rows = {row["source"]: row for row in read_table(recipe().out / "images.parquet")}
    assert rows["small.png"]["reason"] == "too small: 16x16"
    assert rows["narrow.png"]["reason"] == "too narrow: 320x40"
    assert rows["mute.png"]["reason"] == "no caption: none found"
    assert rows["twin.png"]["reason"] == "duplicate: of photo3.png"
    assert rows["broken.jpg"]["reason"].startswith("unreadable: not a readable image")
    assert manifest["kinds"]["images"]["set_aside"] == {
        "duplicate": 1,
        "no caption": 1,
        "too narrow": 1,
        "too small": 1,
        "unreadable": 1,
    }


def test_strict_names_the_first_that_cannot_be_used(recipe, photos):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 not a photo")

    with pytest.raises(InputError, match=r"broken\.jpg: not a readable image"):
        prepare(recipe(strict=True), ["images"])


def test_several_captions_make_several_documents(recipe, photos, tmp_path, vocabulary):
    manifest = tmp_path / "captions.jsonl"
    manifest.write_text('{"file": "photo0.png", "en": "one", "zh": "一"}\n', encoding="utf-8")
    captions = {"manifest": manifest, "columns": ["en", "zh"]}

    prepared = prepare(recipe(images={"captions": captions}), ["images"])

    found = [caption for caption, _ in documents(recipe(), prepared, vocabulary)]
    assert found[:3] == ["one", "一", "number 1"]


def test_a_killed_run_goes_on_and_the_bytes_are_the_same(recipe, monkeypatch):
    prepare(recipe("whole"), ["images"])
    encode, calls = EncodeImages.__call__, []

    def dies_after_two(self, task):
        calls.append(task)
        if len(calls) == 3:
            raise KeyboardInterrupt
        encode(self, task)

    monkeypatch.setattr(EncodeImages, "__call__", dies_after_two)
    with pytest.raises(KeyboardInterrupt):
        prepare(recipe(), ["images"])
    prepare(recipe(), ["images"])

    assert len(calls) == 5  # two parts were there, the third was asked for twice
    assert shards(recipe()) == shards(recipe("whole"))
    assert (recipe().out / "manifest.json").read_bytes() == (
        recipe("whole").out / "manifest.json"
    ).read_bytes()


def test_a_finished_run_is_left_alone(recipe, monkeypatch):
    first = prepare(recipe(), ["images"])
    monkeypatch.setattr(EncodeImages, "__call__", None)

    assert prepare(recipe(), ["images"]) == first


def test_parts_that_a_killed_run_left_beside_its_shards_are_removed(recipe):
    prepare(recipe(), ["images"])
    parts = recipe().out / ".work" / "images-parts"
    parts.mkdir()

    prepare(recipe(), ["images"])

    assert not parts.exists()


def test_thresholds_change_without_new_scores(recipe, monkeypatch):
    prepare(recipe(), ["images"])
    monkeypatch.setattr("emu3_megatron.prepare.images.ScoreImages.__call__", None)

    with pytest.raises(InputError, match="every item was set aside: 7 too small"):
        prepare(recipe(images={"min_side": 512}), ["images"])


def test_a_further_photo_changes_few_scores(recipe, photos, monkeypatch):
    prepare(recipe(), ["images"])
    photo(photos, "a new one", 30, caption="new")
    looked = []
    score = ScoreImages.score

    def look(self, source):
        looked.append(source)
        return score(self, source)

    monkeypatch.setattr(ScoreImages, "score", look)
    assert prepare(recipe(), ["images"])["kinds"]["images"]["found"] == 8

    assert "a new one.png" in looked
    assert len(looked) < 4


@pytest.mark.parametrize("size", [1, 3, 64])
def test_stable_chunks_hold_every_name_in_order(size):
    names = [f"{i}.png" for i in range(500)]

    chunks = stable_chunks(names, size)

    assert [name for chunk in chunks for name in chunk] == names
    assert all(chunks)
    assert 0.5 * size < len(names) / len(chunks) < 2 * size
    assert stable_chunks([], size) == []


def test_two_runs_in_one_folder_are_refused(recipe):
    import fcntl

    recipe().out.mkdir()
    with (recipe().out / ".lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another run is at work there"):
            prepare(recipe(), ["images"])


def test_only_the_tokenizer_takes_the_gpu(recipe, monkeypatch):
    devices = {}

    def run_tasks(make, tasks, config, label):
        devices[label] = config.device
        if config.device == "cuda":
            raise InputError("no GPU here")
        executors.run_tasks(make, tasks, config, label)

    monkeypatch.setattr("emu3_megatron.prepare.workspace.run_tasks", run_tasks)
    with pytest.raises(InputError, match="no GPU here"):
        prepare(recipe(run={"executor": "local", "device": "cuda"}), ["images"])

    assert devices == {"images: scores/photo": "cpu", "images: tokens/item": "cuda"}


def test_a_file_system_without_locks_is_named(recipe, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)

    with pytest.raises(InputError, match=r"out: cannot be locked \(Function not implemented\)"):
        prepare(recipe(), ["images"])


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(recipe, monkeypatch):
    def full(path, schema, rows, scores):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("emu3_megatron.prepare.pipeline.write_table", full)
        with pytest.raises(InputError, match="No space left on device; free some space"):
            prepare(recipe(), ["images"])

    assert prepare(recipe(), ["images"])["kinds"]["images"]["kept"] == 7


# Decisions


def scored(**scores):
    row = {
        "source": "a.png",
        "content": "0",
        "width": 600,
        "height": 600,
        "quality": 7.0,
        "colour": 40.0,
        "text_area": 0.0,
        "near": bytes(SIGNATURE.itemsize),
        "error": None,
    }
    return {**row, **scores}


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ({}, None),
        ({"quality": 3.0}, None),  # rescued: colourful and without text
        ({"quality": 3.0, "colour": 1.0}, "low quality: 3.00, monochrome (1.0)"),
        ({"quality": 3.0, "text_area": 0.4}, "low quality: 3.00, text on 40%"),
        ({"quality": 3.0, "text_area": None}, "low quality: 3.00, text unknown"),
        ({"width": 511}, "too small: 511x600"),
        ({"width": 3001}, "too narrow: 3001x600"),
    ],
)
def test_the_rules_of_emu3(scores, reason):
    row = scored(**scores)
    decide_images([row], ImagesConfig(source="photos"))

    assert (row["kept"], row["reason"]) == (reason is None, reason)


def test_the_largest_of_near_duplicates_stays():
    rows = [scored(source="a", content="1"), scored(source="b", content="2", width=900)]
    decide_images(rows, ImagesConfig(source="photos"))

    assert rows[0]["reason"] == "near duplicate: of b"
    assert rows[1]["kept"]
