"""Packs of a prepare recipe: their names, selections, and what is made again."""

import json

import pytest
import yaml

from emu3_megatron.config import load_recipe
from emu3_megatron.config.prepare import PacksConfig, PrepareRecipe
from emu3_megatron.data.packing.pack_set import PackSet
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.pipeline import prepare


@pytest.fixture
def load(tmp_path):
    """A function that loads a recipe over twenty texts, with these packs."""
    (tmp_path / "texts").mkdir()
    for i in range(20):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"line {i}", encoding="utf-8")

    def load(*packs):
        values = {
            "out": str(tmp_path / "out"),
            "model": "emu3-tiny",
            "text": {"source": str(tmp_path / "texts")},
            "packs": list(packs),
            "run": {"executor": "local"},
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return load_recipe(PrepareRecipe, path)

    return load


@pytest.mark.parametrize(
    ("packs", "name"),
    [
        ({"context": 5120, "kinds": ["images", "text"]}, "images-text-5120.pack"),
        (
            {"context": 64, "kinds": ["images"], "select": "captioned"},
            "images-captioned-64.pack",
        ),
        ({"name": "stage1", "context": 64, "kinds": ["text"]}, "stage1.pack"),
    ],
)
def test_packs_are_named_or_have_a_name_that_says_what_they_are(packs, name):
    assert PacksConfig.model_validate(packs).folder_name == name


@pytest.mark.parametrize(
    "packs",
    [
        [{"context": 64, "kinds": ["text"]}, {"context": 64, "kinds": ["text"], "seed": 1}],
        [
            {"name": "text-64", "context": 32, "kinds": ["text"]},
            {"context": 64, "kinds": ["text"]},
        ],
    ],
)
def test_two_packs_of_one_name_are_refused(load, packs):
    with pytest.raises(
        InputError, match=r"two of them are text-64\.pack; give each a name"
    ) as error:
        load(*packs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a/b", "..", ""])
def test_a_name_that_is_no_folder_is_refused(load, name):
    with pytest.raises(InputError, match=r"packs\.0\.name: "):
        load({"name": name, "context": 64, "kinds": ["text"]})


def test_two_packs_of_one_context_are_two_folders(load, tmp_path, vocabulary):
    recipe = load(
        {"context": 64, "kinds": ["text"]}, {"name": "other", "context": 64, "kinds": ["text"]}
    )

    manifest = prepare(recipe, ["text"])

    paths = [entry["path"] for entry in manifest["packs"]]
    assert paths == ["packs/text-64.pack", "packs/other.pack"]
    assert [PackSet(recipe.out / path, vocabulary).context for path in paths] == [64, 64]


def test_packs_of_kinds_that_are_not_prepared_wait_for_them(load):
    recipe = load({"context": 64, "kinds": ["text"]}, {"context": 64, "kinds": ["clips"]})

    assert len(prepare(recipe, ["text"])["packs"]) == 1


def test_a_selection_of_nothing_names_the_packs(load):
    recipe = load({"name": "asked", "context": 64, "kinds": ["text"], "select": "understanding"})

    with pytest.raises(InputError, match=r"packs/asked\.pack: .*no document is of the layout und"):
        prepare(recipe, ["text"])


def test_packs_that_are_there_are_not_made_again(load, monkeypatch):
    recipe = load({"context": 64, "kinds": ["text"]})
    first = prepare(recipe, ["text"])
    monkeypatch.setattr("emu3_megatron.prepare.packing.pack_shards", None)

    assert prepare(recipe, ["text"]) == first
    assert json.loads((recipe.out / "manifest.json").read_text(encoding="utf-8")) == first
