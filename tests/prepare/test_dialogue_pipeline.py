"""Dialogues from rows and images to shards: every image in its place, odd rows, resumption."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.media import write_video

from emu3_megatron.config.prepare import PrepareRecipe
from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import Turn, Vision, dialogue
from emu3_megatron.media.images import to_pixels
from emu3_megatron.prepare.dialogues import tables
from emu3_megatron.prepare.dialogues.documents import WriteDocuments
from emu3_megatron.prepare.dialogues.encoding import EncodeShown
from emu3_megatron.prepare.pipeline import prepare
from emu3_megatron.prepare.tables import read_table

SIDE = 32  # pixels: 4 x 4 codes


@pytest.fixture(scope="module")
def saved_tokenizer(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return folder


def picture(seed, size=(SIDE, SIDE)):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST)


@pytest.fixture
def media(tmp_path):
    """A folder of ten images that differ."""
    folder = tmp_path / "media"
    folder.mkdir()
    for i in range(10):
        picture(i).save(folder / f"{i}.png")
    return folder


def asks(question, answer="b", **values):
    messages = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": messages, **values}


@pytest.fixture
def recipe(tmp_path, media, saved_tokenizer):
    """A function that makes a recipe over the file `name` of rows, changed by keys."""

    def make(rows=None, name="rows.json", out="out", **values):
        path = tmp_path / name
        if rows is not None:
            path.write_text(json.dumps(rows), encoding="utf-8")
        section = {"source": path, "media": media, "min_area": SIDE**2, "max_area": 4 * SIDE**2}
        sections = {"dialogues": {**section, **values.pop("dialogues", {})}}
        return PrepareRecipe.model_validate(
            {
                "out": tmp_path / out,
                "model": "emu3-tiny",
                "tokenizer": saved_tokenizer,
                "packs": [{"context": 512, "kinds": ["dialogues"]}],
                "run": {"executor": "local", "task_items": 2},
                **sections,
                **values,
            }
        )

    return make


def documents(recipe, vocabulary):
    manifest = json.loads((recipe.out / "manifest.json").read_text(encoding="utf-8"))
    stores = [
        TokenStore(recipe.out / "shards" / shard["name"], vocabulary)
        for shard in manifest["kinds"]["dialogues"]["shards"]
    ]
    return [store.document(i) for store in stores for i in range(len(store))]


def same(found, expected):
    assert [(s.tokens.tolist(), s.trained) for s in found.spans] == [
        (s.tokens.tolist(), s.trained) for s in expected.spans
    ]


@pytest.fixture
def seen(tokenizer):
    """A function that encodes an image by itself."""
    return lambda image: Vision.image(
        tokenizer.encode_images(to_pixels(image)[None])[0].numpy().astype(np.int64)
    )


# What lies in the shards


def test_rows_become_documents(recipe, vocabulary, seen):
    rows = [
        asks("<image>\nWhat is it?", "A cat.", image="3.png"),
        asks("one", "two"),
        asks("Is <image> or <image> larger?", "Neither.", image=["5.png", "3.png"]),
    ]

    manifest = prepare(recipe(rows), ["dialogues"])

    three, five = seen(picture(3)), seen(picture(5))
    found = documents(recipe(), vocabulary)
    same(found[0], dialogue(vocabulary, [Turn([three, "What is it?"], "A cat.")]))
    same(found[1], dialogue(vocabulary, [Turn(["one"], "two")]))
    question = ["Is ", five, " or ", three, " larger?"]
    same(found[2], dialogue(vocabulary, [Turn(question, "Neither.")]))
    assert manifest["packs"][0]["documents"] == 3


def test_every_row_gets_its_own_images(recipe, vocabulary, seen):
    """In any order, with text rows between, and odd rows set aside."""
    random = np.random.default_rng(0)
    chosen = [random.integers(0, 10, n).tolist() for n in random.integers(0, 4, 40)]
    rows = [
        asks("<image>" * len(some) + f"{i}", image=[f"{n}.png" for n in some])
        for i, some in enumerate(chosen)
    ]
    for i in (3, 17, 18):
        rows[i]["image"] = [*rows[i]["image"], "9.png"]  # more images than marks
    codes = [seen(picture(i)) for i in range(10)]

    prepare(recipe(rows, dialogues={"skip_bad": True}), ["dialogues"])

    found = iter(documents(recipe(), vocabulary))
    for i, some in enumerate(chosen):
        if i not in (3, 17, 18):
            turn = Turn([*(codes[n] for n in some), f"{i}"], "b")
            same(next(found), dialogue(vocabulary, [turn]))
    assert next(found, None) is None


def test_an_image_of_several_rows_is_encoded_once(recipe, monkeypatch):
    encoded = []
    call = EncodeShown.__call__

    def counted(self, task):
        encoded.extend(shown.name for shown in task.shown)
        call(self, task)

    monkeypatch.setattr(EncodeShown, "__call__", counted)
    prepare(recipe([asks(f"<image>{i}", image=f"{i % 3}.png") for i in range(9)]), ["dialogues"])

    assert sorted(encoded) == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((32, 32), (4, 4)),  # the least area
        ((64, 64), (8, 8)),  # the greatest
        ((45, 51), (6, 6)),  # within: rounded to sides divisible by 8
        ((16, 8), (3, 6)),  # below: enlarged
        ((320, 160), (5, 11)),  # above: reduced
    ],
)
def test_images_are_resized_only_outside_the_range(recipe, vocabulary, media, size, grid):
    picture(0, size).save(media / "a.png")

    prepare(recipe([asks("<image>a", image="a.png")]), ["dialogues"])

    (document,) = documents(recipe(), vocabulary)
    text = vocabulary.decode(document.spans[1].tokens)
    assert text == f"{grid[0]}*{grid[1]}"


def test_a_clip(recipe, vocabulary, media):
    write_video(media / "a.mp4", [picture(i) for i in range(16)])  # two seconds at 8 fps
    section = {"clip_area": SIDE**2, "clip_fps": 6.0, "clip_frames": 8}

    prepare(recipe([asks("<video>\na", video="a.mp4")], dialogues=section), ["dialogues"])

    (document,) = documents(recipe(), vocabulary)
    text = vocabulary.decode(document.spans[1].tokens)
    assert text == "4*4*2 4fps 2s"  # at 6 frames a second it would have more than 8


def test_all_files_of_a_folder(recipe, vocabulary, tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps([asks("one")]), encoding="utf-8")
    (folder / "b.jsonl").write_text(
        json.dumps(asks("two")) + "\n" + json.dumps(asks("three")), encoding="utf-8"
    )
    pq.write_table(pa.Table.from_pylist([asks("four")]), folder / "c.parquet")

    prepare(recipe(name="rows"), ["dialogues"])

    found = [vocabulary.decode(d.spans[0].tokens) for d in documents(recipe(), vocabulary)]
    assert [text.split("USER: ")[1] for text in found] == [
        f"{n}. ASSISTANT:" for n in ("one", "two", "three", "four")
    ]


def test_images_inside_parquet(recipe, vocabulary, tmp_path, seen):
    """As OneVision's files have them; rows without one lie between."""
    rows = []
    for i in range(7):
        data = io.BytesIO()
        picture(i).save(data, "PNG")
        image = {"bytes": data.getvalue(), "path": "image.png"} if i % 3 else None
        rows.append(asks(f"{'<image>' if i % 3 else ''}{i}", image=image))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=2)

    prepare(recipe(name="rows.parquet"), ["dialogues"])

    for i, document in enumerate(documents(recipe(), vocabulary)):
        parts = [seen(picture(i)), f"{i}"] if i % 3 else [f"{i}"]
        same(document, dialogue(vocabulary, [Turn(parts, "b")]))


def test_text_alone_needs_no_tokenizer(recipe, vocabulary):
    prepare(recipe([asks("one")], tokenizer=None), ["dialogues"])

    assert len(documents(recipe(), vocabulary)) == 1


def test_images_need_a_tokenizer(recipe):
    with pytest.raises(InputError, match="tokenizer: name the folder"):
        prepare(recipe([asks("<image>one", image="1.png")], tokenizer=None), ["dialogues"])


# Odd rows


def broken(folder):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    return asks("<image>a", image="broken.jpg"), "unreadable: broken.jpg: not a readable image"


def narrow(folder):
    picture(0, (300, 40)).save(folder / "rope.png")
    return asks("<image>a", image="rope.png"), "unreadable: rope.png: 300x40 is narrower than 1:5"


def missing(folder):
    return asks("<image>a", image="gone.png"), "no such image: gone.png"


def of_another_suffix(folder):
    """mix665k names JPEG files that are GIF (LLaVA issue 1618)."""
    picture(0).save(folder / "7[1].gif")
    row = asks("<image>a", image="7[1].jpg")
    return row, r"no such image: 7\[1\].jpg \(there is 7\[1\].gif\)"


def a_name_that_no_file_has(folder):
    return asks("<image>a", image="a\0b.png"), "no such image: a\0b.png"


def a_folder(folder):
    (folder / "inside").mkdir()
    return asks("<image>a", image="inside"), "unreadable: inside: cannot be read"


def no_clip(folder):
    (folder / "a.mp4").write_bytes(b"no video")
    return asks("<video>a", video="a.mp4"), "unreadable: a.mp4: not a readable video"


def a_short_clip(folder):
    write_video(folder / "a.mp4", [picture(0)] * 2)
    return asks("<video>a", video="a.mp4"), "unreadable: a.mp4: .* too short"


def too_long(folder):
    return asks("a" * 500), "too long: 550 tokens, dialogues.max_tokens=400"


def more_images_than_marks(folder):
    return asks("a", image="1.png"), "images and marks: 1 images, 0 <image> marks"


ODD = [
    broken,
    narrow,
    missing,
    of_another_suffix,
    a_name_that_no_file_has,
    a_folder,
    no_clip,
    a_short_clip,
    too_long,
    more_images_than_marks,
]


@pytest.mark.parametrize("make", ODD)
def test_an_odd_row_stops_the_run_or_is_set_aside(recipe, vocabulary, media, make):
    odd, reason = make(media)
    rows = [asks("<image>0", image="0.png"), odd, asks("<image>2", image="2.png")]
    section = {"max_tokens": 400, "clip_area": SIDE**2}

    with pytest.raises(InputError, match=rf"rows\.json: row 1: {reason}.*--skip-bad") as error:
        prepare(recipe(rows, dialogues=section), ["dialogues"])
    assert "\n" not in str(error.value)
    manifest = prepare(recipe(dialogues={**section, "skip_bad": True}), ["dialogues"])

    kept = [row["kept"] for row in read_table(recipe().out / "dialogues.parquet")]
    assert kept == [True, False, True]
    category = reason.partition(":")[0]
    assert manifest["kinds"]["dialogues"]["set_aside"] == {category: 1}
    assert len(documents(recipe(), vocabulary)) == 2
    with pytest.raises(InputError, match=rf"rows\.json: row 1: {reason}"):  # also when it is done
        prepare(recipe(dialogues=section), ["dialogues"])


def test_the_first_odd_row_is_named_and_how_many_there_are(recipe):
    rows = [asks("a"), asks(" "), asks("a"), asks("a", image="1.png")]

    with pytest.raises(InputError, match=r"row 1: empty question.*\(2 rows cannot be used, see"):
        prepare(recipe(rows), ["dialogues"])


def test_a_file_of_nothing_but_odd_rows(recipe):
    with pytest.raises(InputError, match="every item was set aside: 2 empty question"):
        prepare(recipe([asks(" "), asks("")], dialogues={"skip_bad": True}), ["dialogues"])


@pytest.mark.parametrize(
    ("name", "reason"),
    [("gone.json", "no such file or folder"), ("media/1.png", "ends in none of .json, .jsonl")],
)
def test_a_source_of_no_rows(recipe, name, reason):
    with pytest.raises(InputError, match=reason):
        prepare(recipe(name=name), ["dialogues"])


def test_areas_are_a_range(recipe):
    with pytest.raises(ValueError, match="min_area=5 is above max_area=4"):
        recipe(dialogues={"min_area": 5, "max_area": 4})


# Resumption


@pytest.fixture
def many(monkeypatch):
    """Thirty rows that become parts of eight."""
    monkeypatch.setattr(tables, "GROUP", 8)
    return [asks(f"<image>{i}", image=f"{i % 10}.png") for i in range(30)]


def shards(recipe):
    return {path.name: path.read_bytes() for path in (recipe.out / "shards").iterdir()}


@pytest.mark.parametrize(("worker", "at"), [(EncodeShown, 3), (WriteDocuments, 2)])
def test_a_killed_run_goes_on_and_the_bytes_are_the_same(recipe, many, monkeypatch, worker, at):
    prepare(recipe(many, out="whole"), ["dialogues"])
    call, calls = worker.__call__, []

    def dies(self, task):
        calls.append(task)
        if len(calls) == at:
            raise KeyboardInterrupt
        call(self, task)

    monkeypatch.setattr(worker, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare(recipe(), ["dialogues"])
    prepare(recipe(), ["dialogues"])

    assert len({task.out for task in calls}) == len(calls) - 1  # only the killed one again
    assert shards(recipe()) == shards(recipe(out="whole"))


def test_a_finished_run_is_left_alone(recipe, many, monkeypatch):
    first = prepare(recipe(many), ["dialogues"])
    for worker in (EncodeShown, WriteDocuments, tables.ReadRows):
        monkeypatch.setattr(worker, "__call__", None)

    assert prepare(recipe(), ["dialogues"]) == first


def test_further_rows_encode_only_further_images(recipe, many, monkeypatch):
    prepare(recipe(many[:8]), ["dialogues"])
    encoded = []
    call = EncodeShown.__call__

    def counted(self, task):
        encoded.extend(shown.name for shown in task.shown)
        call(self, task)

    monkeypatch.setattr(EncodeShown, "__call__", counted)
    prepare(recipe(many), ["dialogues"])

    assert {"8.png", "9.png"} <= set(encoded)
    assert len(encoded) < 10


def test_shards_are_cut_to_their_size(recipe, many):
    manifest = prepare(recipe(many, shard_bytes=8000), ["dialogues"])

    assert len(manifest["kinds"]["dialogues"]["shards"]) > 1
