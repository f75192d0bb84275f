"""A source from outside the package, named in a recipe and mixed with packs."""

import pytest
import yaml
from support.batches import reader, setting_of
from support.extensions import Lines

from emu3_megatron.config import Recipe, load_recipe
from emu3_megatron.data.mixed import MixtureData
from emu3_megatron.data.source import Piece
from emu3_megatron.errors import InputError


@pytest.fixture
def load(tmp_path, make_packs, make_text):
    """A function that loads a recipe of packs and of a file of four lines, three to one."""
    (tmp_path / "poems.txt").write_text("one\ntwo\nthree\nfour\n", encoding="utf-8")
    packs = make_packs([make_text(60)] * 3, 64)

    def load(**changes):
        lines = {"kind": "support.extensions:Lines", "file": str(tmp_path / "poems.txt")}
        sources = [{"pack": str(packs.path), "weight": 3}, {**lines, "tokens": 64, **changes}]
        values = {
            "run": {"dir": str(tmp_path / "run"), "steps": 4},
            "model": {"preset": "emu3-tiny"},
            "data": {"context": 64, "sources": sources, "workers": 1},
            "batch": {"size": 8},
            "optimizer": {"lr": 1e-3},
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return load_recipe(Recipe, path)

    return load


def test_a_recipe_names_it_and_its_rows_are_read(load):
    recipe = load()
    data = MixtureData(recipe.data, setting_of(recipe))

    steps = list(data.batches(reader(), 0, 2))

    refs = [ref for step in steps for batch in step for row in batch.documents for ref in row]
    poems = [ref.document for ref in refs if ref.source == "poems.txt"]
    assert sorted(poems) == [0, 1, 2, 3], "a quarter of 16 sequences, and no line twice"
    assert data.section.sources[1].content is not None


def test_it_is_known_by_its_content(load, tmp_path):
    before = MixtureData(load().data, setting_of(load()))
    (tmp_path / "poems.txt").rename(tmp_path / "moved.txt")
    recipe = load(file=str(tmp_path / "moved.txt"))
    moved = MixtureData(recipe.data, setting_of(recipe))
    moved.load_state_dict(before.state_dict())
    moved.batches(reader(), 1, 2)

    assert len(moved.state_dict()["phases"]) == 1


def test_images_that_it_cuts_say_no_grid_and_stop_no_run(load, make_image, monkeypatch):
    recipe = load()
    data = MixtureData(recipe.data, setting_of(recipe))
    image = make_image("a cat")
    cut = [Piece(image.tokens[:9], None, "cut", 0), Piece(image.tokens[12:], None, "cut", 0, 12)]
    monkeypatch.setattr(Lines, "row", lambda self, index: cut)

    assert data.grid is None

    monkeypatch.setattr(
        Lines, "row", lambda self, index: [*cut, cut[0]._replace(tokens=image.tokens)]
    )
    assert data.grid == [3, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weigth": 2}, r"data\.sources\.1\.weigth: no such key"),
        (
            {"kind": "support.extensions:Nothing"},
            r"kind: support\.extensions:Nothing: cannot be",
        ),
        ({"tokens": 32}, r"poems\.txt: packed for a context of 32, data\.context is 64"),
        ({"file": "none.txt"}, r"none\.txt: no such file"),
    ],
)
def test_what_does_not_fit_is_one_line(load, change, message):
    def open_data():
        recipe = load(**change)
        MixtureData(recipe.data, setting_of(recipe))

    with pytest.raises(InputError, match=message) as error:
        open_data()

    assert "\n" not in str(error.value)
