"""A prepared folder in an object store: there once its manifest is, and never half."""

import json

import fsspec
import pytest

from emu3_megatron.config.prepare import PrepareRecipe
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.checking import check_prepared
from emu3_megatron.prepare.pipeline import prepare
from emu3_megatron.prepare.stores import access
from emu3_megatron.prepare.stores.uploading import LISTING, upload

URL = "memory://bucket/first"


@pytest.fixture
def memory():
    """fsspec's store in memory, empty, and `puts`: what was sent to it."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


@pytest.fixture
def puts(memory, monkeypatch):
    """Names of the files that are sent, as they are."""
    sent, put = [], memory.__class__.put_file

    def put_file(self, local, remote, **options):
        put(self, local, remote, **options)
        sent.append(remote.removeprefix("/bucket/first/"))

    monkeypatch.setattr(memory.__class__, "put_file", put_file)
    monkeypatch.setattr(access, "_PAUSE", 0)
    return sent


@pytest.fixture
def prepared(tmp_path):
    """A function that prepares texts into a folder."""

    def make(out="out", texts=("one", "two"), url=None):
        folder = tmp_path / f"texts of {out}"
        folder.mkdir(exist_ok=True)
        for text in texts:
            (folder / f"{text}.txt").write_text(text, encoding="utf-8")
        recipe = PrepareRecipe.model_validate(
            {
                "out": tmp_path / out,
                "model": "emu3-tiny",
                "upload": url,
                "text": {"source": folder},
                "packs": [{"context": 256, "kinds": ["text"]}],
                "run": {"executor": "local"},
            }
        )
        prepare(recipe, ["text"])
        return recipe.out

    return make


def objects(memory):
    start = "/bucket/first/"
    return {name.removeprefix(start): data.getvalue() for name, data in memory.store.items()}


def test_prepare_sends_what_it_made(prepared, memory, tmp_path):
    out = prepared(url=URL)
    listed = json.loads(objects(memory)[LISTING])
    assert set(objects(memory)) == {*listed, LISTING, "manifest.json"}
    assert all(objects(memory)[name] == (out / name).read_bytes() for name in listed)
    memory.get("/bucket/first", str(tmp_path / "fetched"), recursive=True)
    assert "1 shards" in check_prepared(tmp_path / "fetched", deep=True)


def test_the_manifest_comes_last(prepared, memory, monkeypatch):
    order, pipe = [], memory.__class__.pipe_file

    def pipe_file(self, path, data, **options):
        order.append((path, len(self.store)))
        pipe(self, path, data, **options)

    monkeypatch.setattr(memory.__class__, "pipe_file", pipe_file)
    upload(prepared(), URL)
    assert [path.rpartition("/")[2] for path, _ in order] == [LISTING, "manifest.json"]
    assert order[-1][1] == len(memory.store) - 1


def test_an_interrupted_upload_goes_on(prepared, memory, puts, monkeypatch):
    out = prepared()

    def lost(self, local, remote, **_):
        raise ConnectionError("connection reset")

    real = memory.__class__.put_file
    monkeypatch.setattr(
        memory.__class__,
        "put_file",
        lambda self, local, remote, **k: (lost if ".pack" in remote else real)(self, local, remote),
    )
    with pytest.raises(InputError, match="cannot be reached"):
        upload(out, URL)
    assert "manifest.json" not in objects(memory)
    first = set(puts)
    assert first
    monkeypatch.setattr(memory.__class__, "put_file", real)
    puts.clear()
    upload(out, URL)
    assert not first & set(puts)
    assert "manifest.json" in objects(memory)


def test_what_is_there_is_not_sent_again(prepared, memory, puts):
    out = prepared()
    upload(out, URL)
    puts.clear()
    upload(out, URL)
    assert puts == []


def test_an_object_that_was_changed_is_sent_again(prepared, memory, puts):
    out = prepared()
    upload(out, URL)
    puts.clear()
    memory.pipe_file("/bucket/first/text.parquet", b"changed")
    upload(out, URL)
    assert puts == ["text.parquet"]


def test_another_machine_sends_nothing_of_what_is_committed(prepared, memory, puts):
    upload(prepared(), URL)
    puts.clear()
    copy = prepared("copy")  # without the journal of the first
    upload(copy, URL)
    same = {name for name in objects(memory) if name.endswith((".bin", ".idx"))}
    assert not same & set(puts)


def test_more_data_take_the_place_of_what_this_folder_committed(prepared, memory):
    upload(prepared(), URL)
    before = set(objects(memory))
    out = prepared(texts=["one", "two", "three"])
    upload(out, URL)
    names = set(objects(memory))
    assert {path.name for path in (out / "shards").iterdir()} == {
        name.removeprefix("shards/") for name in names if name.startswith("shards/")
    }
    assert before - names  # the shards of before


def test_data_that_another_run_committed_are_refused(prepared, memory):
    upload(prepared("another", texts=["else"]), URL)
    before = objects(memory)
    with pytest.raises(InputError, match="another run committed other data there") as caught:
        upload(prepared(), URL)
    assert "\n" not in str(caught.value)
    assert objects(memory) == before
