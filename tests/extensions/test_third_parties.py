"""What is brought from outside the package trains, named in a recipe by `kind: module:Name`."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.faults import run_job
from support.tiny import make_packs, tiny_recipe

from emu3_megatron.config import Recipe

LAYOUTS = {"one process": (1, {}), "TP 2 x CP 2": (4, {"tensor": 2, "context": 2})}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_packs(tmp_path_factory.mktemp("packs"))


def rows(recipe: Recipe) -> list[dict[str, Any]]:
    lines = (recipe.run.dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def train(recipe: Recipe, ranks: int = 1) -> list[dict[str, Any]]:
    """Rows of metrics; a run that stops halfway goes on at the next call."""
    for end in run_job(recipe, ranks=ranks):
        assert end.code == 0, end.said
    return rows(recipe)


def six_steps(pack: Path, folder: Path, layout: dict, **sections: Any) -> Recipe:
    return tiny_recipe(pack, folder, run={"steps": 6}, parallel=layout, **sections)


def test_an_objective_trains_alike_in_every_layout(pack, tmp_path):
    objective = {"kind": "support.extensions:SmoothedText", "smoothing": 0.2}
    found = {
        name: train(six_steps(pack, tmp_path / name, layout, objective=objective), ranks)
        for name, (ranks, layout) in LAYOUTS.items()
    }
    alone, together = ([row["loss"] for row in run] for run in found.values())

    assert together == pytest.approx(alone, rel=1e-4)
    assert alone[-1] < 0.9 * alone[0]
    assert found["one process"][0]["tokens_text"] == found["TP 2 x CP 2"][0]["tokens_text"] > 0


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_hook_keeps_its_state_over_a_resume(pack, tmp_path, name):
    ranks, layout = LAYOUTS[name]
    hooks = [{"kind": "support.extensions:MovingAverage", "decay": 0.8}]
    straight = six_steps(pack, tmp_path / "straight", layout, hooks=hooks)
    stopped = straight.model_copy(deep=True)
    stopped.run.dir, stopped.run.stop_after = tmp_path / "stopped", 3
    going_on = stopped.model_copy(deep=True)
    going_on.run.stop_after = None

    train(stopped, ranks)
    resumed = [row for row in train(going_on, ranks) if "average" in row]

    assert [row["averaged"] for row in resumed] == [1, 2, 3, 4, 5, 6]
    assert resumed == [row for row in train(straight, ranks) if "average" in row]


def test_data_of_another_kind_goes_on_where_it_stopped(tmp_path):
    data = {"kind": "support.extensions:Counting", "context": 128, "stride": 3}
    found = {}
    for name, (ranks, layout) in LAYOUTS.items():
        recipe = six_steps(tmp_path / "none", tmp_path / name, layout)
        values = {**recipe.model_dump(mode="json"), "data": data}
        first = Recipe.model_validate(values | {"run": values["run"] | {"stop_after": 3}})
        train(first, ranks)
        found[name] = train(Recipe.model_validate(values), ranks)
    alone, together = ([row["loss"] for row in run] for run in found.values())

    assert len(alone) == 6
    assert together == pytest.approx(alone, rel=1e-4)
    assert alone[-1] < alone[0]


def test_a_source_is_mixed_with_packs_in_every_layout(pack, tmp_path):
    (tmp_path / "poems.txt").write_text("one\ntwo\nthree\nfour\n", encoding="utf-8")
    poems = {"kind": "support.extensions:Lines", "file": str(tmp_path / "poems.txt")}
    sources = {"sources": [{"pack": str(pack)}, {**poems, "tokens": 128}]}
    found = {
        name: train(six_steps(pack, tmp_path / name, layout, data=sources), ranks)
        for name, (ranks, layout) in LAYOUTS.items()
    }
    alone, together = ([row["loss"] for row in run] for run in found.values())

    assert together == pytest.approx(alone, rel=1e-4)
    assert alone[-1] < alone[0]


def test_an_engine_of_plain_torch_gives_the_same_losses(pack, tmp_path):
    megatron = six_steps(pack, tmp_path / "megatron", {})
    plain = six_steps(
        pack, tmp_path / "plain", {}, engine={"kind": "support.plain_engine:PlainTorch"}
    )
    halfway = plain.model_copy(deep=True)
    halfway.run.stop_after = 3

    expected = [row["loss"] for row in train(megatron)]
    train(halfway)
    found = [row["loss"] for row in train(plain)]

    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"objective": {"kind": "support.extensions:Nothing"}}, "cannot be imported"),
        ({"objective": {"kind": "no.such:Module"}}, "cannot be imported"),
        ({"objective": {"kind": "support.extensions:whole_batch"}}, "no attribute Config"),
        ({"objective": {"kind": "next_word"}}, "no kind 'next_word'; choose one of next_token"),
        ({"hooks": [{"kind": "support.extensions:MovingAverage", "decoy": 1}]}, "hooks.0.decoy"),
    ],
)
def test_a_component_that_does_not_exist_or_does_not_know_a_key_is_refused(section, message):
    with pytest.raises(ValueError, match=message):
        tiny_recipe(Path("a.pack"), Path("run"), **section)
