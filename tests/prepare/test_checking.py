"""`emu3 prepare all RECIPE` and `emu3 check FOLDER`, as a user types them."""

import json

import pytest
import yaml

from emu3_megatron.cli import main


@pytest.fixture
def prepared(tmp_path):
    """A folder of prepared text."""
    (tmp_path / "texts").mkdir()
    lines = [json.dumps({"text": f"line {i}"}) for i in range(20)]
    (tmp_path / "texts" / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe = {
        "out": str(tmp_path / "out"),
        "model": "emu3-tiny",
        "text": {"source": str(tmp_path / "texts")},
        "packs": [{"context": 64, "kinds": ["text"]}],
        "run": {"executor": "local"},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    main(["prepare", "all", str(path)])
    return tmp_path / "out"


def shard_file(prepared, suffix):
    return next((prepared / "shards").glob(f"*.{suffix}"))


def refused(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(list(arguments))
    return capsys.readouterr().err


def test_what_was_prepared_is_said_and_sound(prepared, capsys):
    main(["prepare", "all", str(prepared.parent / "recipe.yaml")])  # finds it done
    said = capsys.readouterr().out
    assert "text: 20 of 20 kept, 170 tokens in 1 shards" in said

    main(["check", str(prepared), "--deep"])
    assert "1 shards, 170 tokens, 1 folders of packs (valid)" in capsys.readouterr().out


def test_a_lost_shard_is_named(prepared, capsys):
    shard_file(prepared, "bin").unlink()

    assert ".bin: no such file" in refused(capsys, "check", str(prepared))


def test_a_flipped_byte_is_found_by_deep(prepared, capsys):
    path = shard_file(prepared, "bin")
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)

    assert "not the content" in refused(capsys, "check", str(prepared), "--deep")


@pytest.mark.parametrize("deep", [[], ["--deep"]])
def test_two_packs_under_one_path_are_found(prepared, capsys, deep):
    path = prepared / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["packs"] *= 2  # as older versions wrote it of two packs of one context
    path.write_text(json.dumps(manifest), encoding="utf-8")

    line = refused(capsys, "check", str(prepared), *deep)
    assert "manifest.json: lists 2 folders of packs as packs/text-64.pack, where only the" in line


def test_a_recipe_without_the_kind_is_refused(prepared, capsys):
    recipe = str(prepared.parent / "recipe.yaml")

    assert "no section images" in refused(capsys, "prepare", "images", recipe)


def test_without_recipe_and_folder_the_flags_are_named(capsys):
    assert "give a recipe, or --source and --out" in refused(capsys, "prepare", "text")
