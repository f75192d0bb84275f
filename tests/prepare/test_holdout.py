"""Near duplicates of texts, and the hold-out: no near copy of a held-out item is trained."""

import json
import random

import numpy as np
import pytest
from PIL import Image
from support.running import emu3

from emu3_megatron.config.prepare import ClipsConfig, ImagesConfig, PrepareRecipe
from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.prepare.checking import check_prepared
from emu3_megatron.prepare.clips import decide_clips
from emu3_megatron.prepare.groups import first_kept, group_numbers, held_out
from emu3_megatron.prepare.images import decide_images
from emu3_megatron.prepare.near_texts import near_pairs_of_texts, text_signatures
from emu3_megatron.prepare.pipeline import prepare
from emu3_megatron.prepare.scores.duplicates import content_hash, signature
from emu3_megatron.prepare.tables import read_table

WORDS = [f"word{i}" for i in range(3000)]


def text(seed, words=120):
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def edited(value, place=60):
    words = value.split()
    return " ".join([*words[:place], "EDITED", *words[place + 1 :]])


@pytest.fixture
def run(tmp_path):
    """A function that prepares texts of two files; returns the recipe and the manifest."""

    def run(first, second=(), out="out", executor="local", holdout=None, **section):
        folder = tmp_path / "texts"
        folder.mkdir(exist_ok=True)
        for name, texts in (("a", first), ("b", second)):
            lines = [json.dumps({"text": value}) for value in texts]
            (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        recipe = PrepareRecipe.model_validate(
            {
                "out": tmp_path / out,
                "model": "emu3-tiny",
                "holdout": holdout,
                "text": {"source": folder, "range_bytes": 5000, **section},
                "packs": [{"context": 2048, "kinds": ["text"]}],
                "run": {"executor": executor, "workers": 2},
            }
        )
        return recipe, prepare(recipe, ["text"])

    return run


def texts_in(folder, shards, vocabulary):
    stores = [TokenStore(folder / "shards" / shard["name"], vocabulary) for shard in shards]
    return [vocabulary.decode(store.read(i)) for store in stores for i in range(len(store))]


# Texts


def test_texts_are_near_by_the_words_that_they_share():
    one, other = text(0), text(1)
    shouted = one.upper().replace(" ", ",  ")

    pairs = near_pairs_of_texts(text_signatures([one, edited(one), other, shouted]), 0.8)

    assert pairs.tolist() == [[0, 1], [0, 3], [1, 3]]


def test_scripts_without_spaces_are_compared_by_characters():
    signs = "".join(random.Random(0).choices([chr(c) for c in range(0x4E00, 0x5E00)], k=200))

    pairs = near_pairs_of_texts(text_signatures([signs, signs[:100] + "新" + signs[101:]]), 0.8)

    assert pairs.tolist() == [[0, 1]]


@pytest.mark.parametrize("executor", ["local", "processes"])
def test_a_near_copy_of_another_file_is_dropped_and_named(run, vocabulary, executor):
    first = [text(i) for i in range(20)]
    second = [edited(first[3]), text(99), first[5]]

    recipe, manifest = run(first, second, executor=executor, near_duplicates=0.8)

    entry = manifest["kinds"]["text"]
    assert texts_in(recipe.out, entry["shards"], vocabulary) == [*first, second[1]]
    assert entry["set_aside"] == {"duplicate": 1, "unreadable": 0, "near duplicate": 1}
    assert (entry["found"], entry["kept"]) == (23, 21)
    third = sum(len(json.dumps({"text": value})) + 1 for value in first[:3])
    (row,) = read_table(recipe.out / "text.parquet")
    assert row["reason"] == f"b.jsonl:byte 0: near duplicate: of a.jsonl:byte {third}"


def test_a_threshold_of_one_keeps_edited_texts(run):
    _, manifest = run([text(0), edited(text(0))], near_duplicates=1)

    assert manifest["kinds"]["text"]["kept"] == 2


@pytest.mark.slow
def test_ray_writes_the_same(run):
    texts = [text(i) for i in range(60)]
    copies = [edited(value) for value in texts[::3]]

    _, alone = run(texts, copies, "alone", near_duplicates=0.8, holdout=0.2)
    _, together = run(texts, copies, "ray", executor="ray", near_duplicates=0.8, holdout=0.2)

    assert alone == together


def test_held_out_texts_have_no_near_copy_among_the_trained(run, vocabulary):
    texts = [text(i) for i in range(40)]
    copies = [edited(value) for value in texts]

    recipe, manifest = run(texts, copies, holdout=0.2)

    entry = manifest["kinds"]["text"]
    trained = texts_in(recipe.out, entry["shards"], vocabulary)
    held = texts_in(recipe.out / "held-out", entry["held_out"]["shards"], vocabulary)
    assert len(held) == entry["held_out"]["kept"] > 0
    assert sorted([*trained, *held]) == sorted([*texts, *copies])
    assert not {value.replace(" EDITED", "")[:300] for value in held} & {
        value.replace(" EDITED", "")[:300] for value in trained
    }
    (pack,) = manifest["held_out_packs"]
    assert pack["path"] == "held-out/packs/text-2048.pack"
    assert pack["documents"] == len(held)
    assert "; held out: 1 shards, " in check_prepared(recipe.out, deep=True)


def test_a_hold_out_that_is_taken_back_leaves_no_folder(run):
    texts = [text(i) for i in range(20)]
    recipe, _ = run(texts, holdout=0.3)
    assert (recipe.out / "held-out").is_dir()

    _, manifest = run(texts)

    assert not (recipe.out / "held-out").exists()
    assert manifest["held_out_packs"] == []


def test_nothing_is_made_again(run):
    texts = [text(i) for i in range(20)]
    recipe, manifest = run(texts, holdout=0.3)
    times = {path: path.stat().st_mtime_ns for path in (recipe.out / "held-out").rglob("*.bin")}

    _, again = run(texts, holdout=0.3)

    assert again == manifest
    assert times == {path: path.stat().st_mtime_ns for path in times}


# Groups


def test_what_is_near_a_dropped_one_only_stays():
    assert first_kept(3, np.array([[0, 1], [1, 2]])) == [None, 0, None]


def test_groups_are_what_pairs_connect():
    pairs = np.array([[0, 3], [3, 4], [1, 2], [5, 6], [4, 6]])

    assert group_numbers(8, pairs).tolist() == [0, 1, 1, 0, 0, 0, 0, 7]


def test_added_items_take_nothing_out_of_what_is_held_out():
    random = np.random.default_rng(0)
    contents = random.integers(0, 2**64, 400, np.uint64)
    pairs = np.sort(random.integers(0, 400, (100, 2)), axis=1)
    few = pairs[(pairs < 200).all(1)]

    before = held_out(contents[:200], group_numbers(200, few), 0.1)
    after = held_out(contents, group_numbers(400, pairs), 0.1)

    assert before.any()
    assert after[:200][before].all()


# Pictures and clips


def blobs(seed, size=(64, 48)):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST)


def row_of(name, image, **values):
    scores = {"width": image.width, "height": image.height, "quality": 7.0, "error": None}
    near = {"near": signature(image), "content": content_hash([image.tobytes()])}
    return {"source": name, **scores, **near, **values}


@pytest.mark.parametrize("bits", [-1, 4])
def test_held_out_pictures_have_no_near_copy_among_the_trained(bits):
    rows = [row_of(f"{i}", blobs(i)) for i in range(60)]
    rows += [row_of(f"{i} small", blobs(i).resize((48, 36))) for i in range(60)]

    config = ImagesConfig(source="photos", min_side=8, near_duplicate_bits=bits)
    decide_images(rows, config, holdout=0.1)

    sides = {}
    for row in rows:
        sides.setdefault(row["source"].split()[0], set()).add(row["held_out"])
    assert all(len(found) == 1 for found in sides.values())
    assert 0 < sum(found == {True} for found in sides.values()) < 30
    assert sum(row["kept"] for row in rows) == (120 if bits < 0 else 60)


def test_clips_are_held_out_with_their_video_and_its_copies():
    clip = {"seconds": 5.0, "fps": 24.0, "text_area": None, "flow": 0.1}
    rows = []
    for video in range(40):
        for number in range(3):
            image = blobs(100 * video + number)
            for name in ("film", "copy"):
                frames = {"start_frame": 100 * number, "end_frame": 100 * number + 90}
                content = content_hash([f"{name}{video}".encode()])
                rows.append(row_of(f"{name}{video}", image, **clip, **frames, content=content))

    decide_clips(rows, ClipsConfig(source="videos"), holdout=0.1)

    sides = {}
    for row in rows:
        sides.setdefault(row["source"][4:], set()).add(row["held_out"])
    assert all(len(found) == 1 for found in sides.values())
    assert 0 < sum(found == {True} for found in sides.values()) < 20


# In training


def test_a_run_validates_on_what_was_held_out(run, tmp_path):
    recipe, _ = run([text(i) for i in range(60)], holdout=0.3)
    held = recipe.out / "held-out" / "packs" / "text-2048.pack"
    train = {
        "model": {"preset": "emu3-tiny", "hidden": 32, "ffn": 64, "layers": 1, "heads": 2},
        "run": {"dir": str(tmp_path / "run"), "steps": 1, "log_every": 1},
        "data": {
            "context": 2048,
            "sources": [{"pack": str(recipe.out / "packs" / "text-2048.pack")}],
            "workers": 0,
        },
        "batch": {"size": 1, "micro_size": 1},
        "optimizer": {"lr": 1e-3},
        "validation": {"every": 1, "batches": 1, "sources": [{"pack": str(held)}]},
        "precision": "fp32",
    }
    (tmp_path / "train.yaml").write_text(json.dumps(train), encoding="utf-8")

    ended = emu3("train", tmp_path / "train.yaml", cwd=tmp_path)

    assert ended.code == 0, ended.said
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open(encoding="utf-8")
    ]
    (measured,) = [row for row in rows if "validation/loss" in row]
    assert measured["validation/tokens_text"] > 0
