"""Inputs in an object store and in tars: what comes out is what a folder of the files gives."""

import gzip
import io
import json
import shutil
import tarfile
import types

import fsspec
import numpy as np
import pytest
from PIL import Image
from support.media import write_video

from emu3_megatron.config.prepare import PrepareRecipe
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.pipeline import prepare
from emu3_megatron.prepare.stores import access
from emu3_megatron.prepare.stores.patterns import expand
from emu3_megatron.prepare.tables import read_table


@pytest.fixture(scope="session")
def saved_tokenizer(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return folder


@pytest.fixture
def memory():
    """fsspec's store in memory, empty."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield store
    store.store.clear()


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "a").mkdir(parents=True)
    for number in range(5):
        coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
        path = folder / "a" / f"photo{number}.png"
        Image.fromarray(coarse).resize((64, 48), Image.Resampling.NEAREST).save(path)
        path.with_suffix(".txt").write_text(f"number {number}", encoding="utf-8")
    return folder


@pytest.fixture
def run(tmp_path, saved_tokenizer):
    """A function that prepares a source; returns the recipe, the rows of its table and shards."""

    def run(kind, source, out="out", strict=False, **section):
        photo = {"min_side": 32, "min_quality": 0, "ocr": False, "area": 1536}
        clip = {"min_seconds": 0.1, "min_flow": 0, "max_flow": 99, "min_shot_frames": 4, **photo}
        text = {"range_bytes": 1000}
        sections = {"images": photo, "clips": clip, "text": text}
        recipe = PrepareRecipe.model_validate(
            {
                "out": tmp_path / out,
                "model": "emu3-tiny",
                "tokenizer": saved_tokenizer,
                "strict": strict,
                kind: {"source": source, **sections[kind], **section},
                "packs": [{"context": 1024, "kinds": [kind]}],
                "run": {"executor": "local", "task_items": 2},
            }
        )
        prepare(recipe, [kind])
        shards = {path.name: path.read_bytes() for path in (recipe.out / "shards").iterdir()}
        return types.SimpleNamespace(
            recipe=recipe, rows=read_table(recipe.out / f"{kind}.parquet"), shards=shards
        )

    return run


def reasons(made):
    return {row["source"]: row["reason"] for row in made.rows if row["reason"]}


def tar_of(path, files):
    """Write a tar of files, by name."""
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def samples(photos, numbers, as_json=False):
    """Photos and their captions as WebDataset has them, by key."""
    for number in numbers:
        path = photos / "a" / f"photo{number}.png"
        caption = path.with_suffix(".txt").read_bytes()
        yield f"a/photo{number}.png", path.read_bytes()
        if as_json:
            yield f"a/photo{number}.json", json.dumps({"caption": caption.decode()}).encode()
        else:
            yield f"a/photo{number}.txt", caption


def test_photos_at_a_url(run, photos, memory):
    memory.put(str(photos), "/bucket/photos", recursive=True)
    at_url = run("images", "memory://bucket/photos", out="url")
    in_folder = run("images", photos)
    assert at_url.shards == in_folder.shards
    assert at_url.rows == in_folder.rows


def test_what_was_scored_of_an_object_is_not_scored_again(run, photos, memory, monkeypatch):
    memory.put(str(photos), "/bucket/photos", recursive=True)
    made = run("images", "memory://bucket/photos")
    read, cat = [], memory.__class__.cat_file

    def cat_file(self, path, **options):
        read.append(path)
        return cat(self, path, **options)

    monkeypatch.setattr(memory.__class__, "cat_file", cat_file)
    assert run("images", "memory://bucket/photos", min_side=40).shards == made.shards
    assert {path.rpartition(".")[2] for path in read} == {"txt"}  # the captions


@pytest.mark.parametrize("as_json", [False, True])
def test_photos_in_tars(run, photos, tmp_path, as_json):
    (tmp_path / "shards").mkdir()
    tar_of(tmp_path / "shards" / "00.tar", samples(photos, range(3), as_json))
    tar_of(tmp_path / "shards" / "01.tar", samples(photos, range(3, 5), as_json))
    in_tars = run("images", tmp_path / "shards" / "{00..01}.tar", out="tars")
    assert in_tars.shards == run("images", photos).shards
    assert [row["source"] for row in in_tars.rows] == [
        f"{0 if number < 3 else 1:02}.tar!a/photo{number}.png" for number in range(5)
    ]


def test_a_folder_with_files_and_tars(run, photos):
    tar_of(photos / "more.tar", samples(photos, [4]))
    for path in (photos / "a").glob("photo4.*"):
        path.unlink()
    made = run("images", photos)
    assert [row["source"] for row in made.rows if row["kept"]] == [
        *(f"a/photo{number}.png" for number in range(4)),
        "more.tar!a/photo4.png",
    ]


def test_tars_at_a_url(run, photos, memory, tmp_path):
    memory.put(tar_of(tmp_path / "0.tar", samples(photos, range(5))).as_posix(), "/b/x/0.tar")
    assert run("images", "memory://b/x/*.tar", out="url").shards == run("images", photos).shards


def test_a_key_ends_at_the_first_point(run, photos, tmp_path):
    picture = (photos / "a" / "photo0.png").read_bytes()
    tar_of(tmp_path / "0.tar", [("0.left.png", picture), ("0.txt", b"of the key")])
    made = run("images", tmp_path / "0.tar")
    assert [row["captions"] for row in made.rows] == [["of the key"]]


def test_a_truncated_tar(run, photos, tmp_path):
    path = tar_of(tmp_path / "0.tar", samples(photos, range(5)))
    names = [f"a/photo{number}.png" for number in range(5)]
    with tarfile.open(path) as tar:
        cut = tar.getmember(names[3])
    path.write_bytes(path.read_bytes()[: cut.offset_data + 10])
    made = run("images", path)
    said = f"unreadable: cut off, as its tar is: 10 of {cut.size:,} bytes are there"
    assert reasons(made) == {f"0.tar!{names[3]}": said}
    assert sum(row["kept"] for row in made.rows) == 3


def test_a_tar_damaged_between_two_members(run, photos, tmp_path):
    path = tar_of(tmp_path / "0.tar", samples(photos, range(5)))
    with tarfile.open(path) as tar:
        at = tar.getmember("a/photo2.png").offset
    data = bytearray(path.read_bytes())
    data[at : at + 100] = b"?" * 100
    path.write_bytes(data)
    made = run("images", path)
    assert reasons(made) == {
        "0.tar": f"unreadable: damaged at byte {at:,}; what follows is left out"
    }
    assert sum(row["kept"] for row in made.rows) == 2


@pytest.mark.parametrize("data", [b"", b"no tar" * 1000])
def test_a_file_that_is_no_tar(run, photos, data):
    (photos / "bad.tar").write_bytes(data)
    made = run("images", photos)
    assert list(reasons(made)) == ["bad.tar"]
    assert reasons(made)["bad.tar"].startswith("unreadable: damaged: ")
    assert sum(row["kept"] for row in made.rows) == 5


def test_a_broken_member(run, photos, tmp_path):
    whole = dict(samples(photos, range(2)))
    whole["a/photo1.png"] = b"no picture"
    made = run("images", tar_of(tmp_path / "0.tar", whole.items()))
    assert list(reasons(made)) == ["0.tar!a/photo1.png"]


def test_two_members_of_one_name(run, photos, tmp_path):
    files = [*samples(photos, [0]), *samples(photos, [0])]
    made = run("images", tar_of(tmp_path / "0.tar", files))
    assert reasons(made) == {
        "0.tar!a/photo0 (number 2).png": "unreadable: the tar has this name more than once; the "
        "first is read"
    }


def test_clips_at_a_url_and_in_a_tar(run, tmp_path, memory):
    coarse = np.random.default_rng(0).integers(0, 256, (6, 12, 3), np.uint8)
    wide = Image.fromarray(coarse).resize((96, 48), Image.Resampling.BICUBIC)
    folder = tmp_path / "films"
    folder.mkdir()
    film = write_video(folder / "a.mp4", [wide.crop((i, 0, i + 64, 48)) for i in range(12)])
    (folder / "a.txt").write_text("a film", encoding="utf-8")
    memory.put(str(folder), "/bucket/films", recursive=True)
    files = [("a.mp4", film.read_bytes()), ("a.txt", b"a film")]
    tar = tar_of(tmp_path / "0.tar", files)
    expected = run("clips", folder)
    at_url = run("clips", "memory://bucket/films", out="url")
    assert at_url.shards == expected.shards
    assert run("clips", tar, out="tar").shards == expected.shards
    assert not any((at_url.recipe.out / ".work" / "inputs").iterdir())


def test_texts_at_a_url(run, tmp_path, memory):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = tmp_path / "texts"
    texts.mkdir()
    lines = b"".join(json.dumps({"text": f"line {i} " * 9}).encode() + b"\n" for i in range(200))
    (texts / "a.jsonl").write_bytes(lines)
    (texts / "b.jsonl.gz").write_bytes(gzip.compress(lines.replace(b"line", b"row")))
    pq.write_table(pa.table({"text": [f"value {i}" for i in range(50)]}), texts / "c.parquet")
    (texts / "d.txt").write_text("a text", encoding="utf-8")
    memory.put(str(texts), "/bucket/texts", recursive=True)
    expected = run("text", texts).shards
    assert run("text", "memory://bucket/texts", out="url").shards == expected
    one = run("text", "memory://bucket/texts/c.parquet", out="one").shards
    assert one == run("text", texts / "c.parquet", out="file").shards
    files = [(path.name, path.read_bytes()) for path in sorted(texts.iterdir())]
    assert run("text", tar_of(tmp_path / "0.tar", files), out="tar").shards == expected


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("{a}", ["{a}"]),
    ],
)
def test_braces(pattern, names):
    assert expand(pattern) == names


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere://bucket/photos", "fsspec cannot open it"),
        ("gs://bucket/photos", "gs:// needs a package that is not installed"),
        ("memory://bucket/photos", "no such folder or object, or nothing in it"),
        ("memory://b/{0..2}.tar", "no such"),
    ],
)
def test_a_source_that_cannot_be_opened_is_one_line(run, memory, source, said):
    with pytest.raises(InputError, match=said) as caught:
        run("images", source)
    assert "\n" not in str(caught.value)


def test_a_pattern_of_which_a_tar_is_missing(run, photos, tmp_path):
    tar_of(tmp_path / "0.tar", samples(photos, [0]))
    with pytest.raises(InputError, match=r"1\.tar: no such file"):
        run("images", tmp_path / "{0..1}.tar")


def test_a_lost_network_stops_the_run_and_sets_nothing_aside(run, photos, memory, monkeypatch):
    memory.put(str(photos), "/bucket/photos", recursive=True)
    monkeypatch.setattr(access, "_PAUSE", 0)
    tries = []

    def lost(self, path, **_):
        tries.append(path)
        raise ConnectionError("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(memory.__class__, "cat_file", lost)
        with pytest.raises(InputError, match=r"photo0\.png: cannot be reached"):
            run("images", "memory://bucket/photos")
    assert len(tries) == 3
    assert not reasons(run("images", "memory://bucket/photos"))


def test_an_object_that_went_away_is_set_aside(run, photos, memory, monkeypatch):
    memory.put(str(photos), "/bucket/photos", recursive=True)
    cat = memory.__class__.cat_file

    def gone(self, path, **options):
        if path.endswith("photo1.png"):
            raise FileNotFoundError(path)
        return cat(self, path, **options)

    monkeypatch.setattr(memory.__class__, "cat_file", gone)
    made = run("images", "memory://bucket/photos")
    assert list(reasons(made)) == ["a/photo1.png"]


def test_what_a_killed_run_copied_is_removed(run, photos, tmp_path):
    left = tmp_path / "out" / ".work" / "inputs" / ".0.tmp"
    left.mkdir(parents=True)
    (left / "copy.mp4").write_bytes(b"a part")
    run("images", photos)
    assert not left.exists()
    shutil.rmtree(tmp_path / "out")
