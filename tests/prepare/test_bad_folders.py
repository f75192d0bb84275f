"""Folders that hold nothing usable, and disks that are full: one line, and nothing half-written."""

import json
import shutil
import subprocess

import pytest
from PIL import Image

from emu3_megatron.config.prepare import PrepareRecipe
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.checking import check_prepared
from emu3_megatron.prepare.pipeline import prepare
from emu3_megatron.prepare.workspace import only_run


@pytest.fixture
def recipe(tmp_path, tokenizer):
    """A function that makes a recipe of one kind over the folder `source`."""
    (tmp_path / "source").mkdir()
    tokenizer.save(tmp_path / "tokenizer")

    def make(kind, out=tmp_path / "out", **values):
        section = {"source": tmp_path / "source"}
        if kind == "text":
            section["range_bytes"] = 20_000
        base = {"out": out, "model": "emu3-tiny", "tokenizer": tmp_path / "tokenizer"}
        run = {"executor": "local"}
        return PrepareRecipe.model_validate(
            {**base, kind: section, "packs": [], "run": run, **values}
        )

    return make


@pytest.mark.parametrize("kind", ["images", "clips", "text"])
def test_an_empty_folder_is_named(recipe, tmp_path, kind):
    (tmp_path / "source" / "notes.md").write_text("of no kind that is read", encoding="utf-8")
    for suffix in ("png", "mp4", "txt"):
        (tmp_path / "source" / f"folder.{suffix}").mkdir()
        (tmp_path / "source" / f"link.{suffix}").symlink_to("gone")

    with pytest.raises(InputError, match=str(tmp_path / "source")):
        prepare(recipe(kind), [kind])

    assert not (tmp_path / "out" / "shards").exists()


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        ("images", "a.png", "not a readable image"),
        ("clips", "a.mp4", "not a readable video"),
        ("text", "a.jsonl", "not JSON"),
    ],
)
def test_strict_names_what_cannot_be_read(recipe, tmp_path, kind, name, reason):
    (tmp_path / "source" / name).write_bytes(b"neither photo, video nor JSON")

    with pytest.raises(InputError, match="every item was set aside"):
        prepare(recipe(kind), [kind])
    with pytest.raises(InputError, match=rf"{name}.*{reason}.*; repair it, or let it"):
        prepare(recipe(kind, strict=True), [kind])


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own; a function makes it another size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a disk wants root")
    yield (
        folder,
        lambda size: subprocess.run(
            ["mount", "-o", f"remount,size={size}", str(folder)], check=True
        ),
    )
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(not shutil.which("mount"), reason="no mount")
def test_a_disk_that_fills_up_stops_the_run_and_nothing_is_lost(recipe, tmp_path, small_disk):
    folder, resize = small_disk
    texts = (json.dumps({"text": f"line {i} " + "and words " * 10}) for i in range(2000))
    (tmp_path / "source" / "a.jsonl").write_text("\n".join(texts), encoding="utf-8")

    with pytest.raises(InputError, match="No space left on device; free some space"):
        prepare(recipe("text", folder / "out"), ["text"])
    assert list(folder.rglob("*.tmp")) == []
    assert not list(folder.rglob("*.idx"))
    resize("16m")

    again = prepare(recipe("text", folder / "out"), ["text"])
    assert again == prepare(recipe("text"), ["text"])


@pytest.mark.parametrize("name", ["run.json", "checkpoints", "config.json"])
def test_the_folder_of_another_command_is_not_written_to(tmp_path, name):
    (tmp_path / name).mkdir()

    with (
        pytest.raises(InputError, match=f"no folder of prepared data, it holds {name}; choose"),
        only_run(tmp_path),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_unfinished_files_of_other_commands_stay(tmp_path):
    theirs = tmp_path / "runs" / "checkpoints" / ".step-00000010.tmp"
    ours = tmp_path / "shards" / ".images-00000.bin.17.tmp"
    theirs.mkdir(parents=True)
    ours.mkdir(parents=True)

    with only_run(tmp_path):
        assert theirs.exists()
        assert not ours.exists()


@pytest.mark.parametrize("is_there", [True, False])
def test_a_run_that_is_refused_before_it_made_anything_leaves_nothing(recipe, tmp_path, is_there):
    if is_there:
        (tmp_path / "out").mkdir()

    for kind in ("clips", "images", "text"):
        with pytest.raises(InputError, match=str(tmp_path / "source")):
            prepare(recipe(kind), [kind])

        assert (tmp_path / "out").is_dir() == is_there
        assert not [*tmp_path.glob("out/*")]


def test_after_clips_were_refused_the_folder_takes_images(recipe, tmp_path):
    """Whatever was refused: all that is said of the folder afterwards is of the images."""
    (tmp_path / "source" / "a.mp4").write_bytes(b"no video")
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    image.save(tmp_path / "source" / "a.png")
    (tmp_path / "source" / "a.txt").write_text("noise", encoding="utf-8")
    images = {"area": 4096, "min_side": 8, "min_quality": 0, "source": tmp_path / "source"}

    with pytest.raises(InputError, match="every item was set aside"):
        prepare(recipe("clips"), ["clips"])
    manifest = prepare(recipe("images", images=images), ["images"])

    assert list(manifest["kinds"]) == ["images"]
    assert manifest["kinds"]["images"]["kept"] == 1
    assert check_prepared(tmp_path / "out", deep=True).startswith(f"{tmp_path / 'out'}: 1 shards")
    assert not (tmp_path / "out" / ".lock").exists()
