"""Stored references: as good as a live one, and refused where they are of something else."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.pairs import dpo_recipe, pack_pairs, pairs_of_answers, pairs_of_images, save_start
from support.processes import run_processes
from support.running import emu3
from support.steps import start
from support.tiny import make_packs

from emu3_megatron import parallel
from emu3_megatron.alignment.reference import check_reference, layout_of
from emu3_megatron.checkpoints.folders import find_checkpoint
from emu3_megatron.cli.reference import store_reference
from emu3_megatron.cli.train import run_training
from emu3_megatron.config import Recipe
from emu3_megatron.data.columns import Column, read_columns
from emu3_megatron.errors import InputError
from emu3_megatron.training.objectives.references import build_reference


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs to train on and held-out ones, a checkpoint, and what it says of both."""
    folder = tmp_path_factory.mktemp("reference")
    pack = pack_pairs(folder, "pairs", pairs_of_images(9))
    pack_pairs(folder, "held", [*pairs_of_images(4, seed=1), *pairs_of_answers(3)])
    save_start(pack, folder)
    run_processes(store_alone, 1, recipe_of(folder))
    return folder


def recipe_of(folder: Path, name: str = "stored", **sections: Any) -> Recipe:
    held_out = {"every": 3, "batches": 1, "sources": [{"pack": str(folder / "held.pack")}]}
    reference = {"kind": "stored", "folder": str(folder / name)}
    objective = {"kind": "dpo", "tokens": "answer", "reference": reference}
    base: dict[str, Any] = {"objective": objective, "validation": held_out, **sections}
    base["batch"] = {"size": 2, "micro_size": 1, **sections.get("batch", {})}
    return dpo_recipe(folder / "pairs.pack", folder / "run", folder / "start", **base)


def live(recipe: Recipe, folder: Path) -> Recipe:
    values = recipe.model_dump(mode="json")
    values["objective"]["reference"] = {"kind": "live", "checkpoint": str(folder / "start")}
    return Recipe.model_validate(values)


def store_alone(recipe: Recipe) -> None:
    store_reference(recipe)
    parallel.stop(keep_processes=True)


def metrics_of(recipes: list[Recipe]) -> list[list[dict[str, float]]]:
    found = []
    for recipe in recipes:
        steps = start(recipe)
        assert recipe.run.init_from
        steps.engine.start_from(find_checkpoint(recipe.run.init_from))
        found.append([result.metrics for result in steps.take(0, 6)])
        parallel.stop(keep_processes=True)
    return found


def stored_values(folder: Path) -> dict[str, np.ndarray]:
    sources = read_columns(folder)["sources"]
    column = Column(folder)
    return {
        content: np.concatenate([column.row(content, row) for row in range(about["rows"])])
        for content, about in sources.items()
    }


def test_six_steps_are_those_of_a_live_reference_bit_for_bit(folder: Path):
    recipe = recipe_of(folder)

    stored, live_ones = run_processes(metrics_of, 1, [recipe, live(recipe, folder)])[0]

    assert stored == live_ones
    assert stored[0]["preference_loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert stored[-1]["preference_loss"] < 0.99 * stored[0]["preference_loss"]


def test_every_layout_stores_every_row_once(folder: Path, tmp_path: Path):
    """An odd number of rows leaves one of two data parallel ranks without its own at the end."""
    layouts = {"dp": {}, "tp-cp": {"tensor": 2, "context": 2, "sequence": True}}
    for name, layout in layouts.items():
        recipe = recipe_of(folder, str(tmp_path / name), parallel=layout)
        run_processes(store_alone, 4 if layout else 2, recipe)

    alone = stored_values(folder / "stored")
    assert any(about["rows"] % 2 for about in read_columns(folder / "stored")["sources"].values())
    for name in layouts:
        found = stored_values(tmp_path / name)
        assert found.keys() == alone.keys()
        for content, values in alone.items():
            np.testing.assert_allclose(found[content], values, atol=1e-5)
            assert (values < 0).sum() > 100


def test_what_is_stored_already_is_not_computed_again(folder: Path):
    before = (folder / "stored" / "manifest.json").stat().st_mtime_ns

    ended = emu3_reference(folder, recipe_of(folder))

    assert ended.code == 0, ended.said
    assert "stored: holds this reference already" in ended.said
    assert (folder / "stored" / "manifest.json").stat().st_mtime_ns == before


def emu3_reference(folder: Path, recipe: Recipe) -> Any:
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8"
    )
    return emu3("reference", "recipe.yaml", cwd=folder)


def test_the_shipped_recipe_logs_rewards_and_measures_held_out_pairs(folder: Path, tmp_path: Path):
    """And a resumed run goes on with the reference that its checkpoint knows."""
    keys = ["model.hidden=32", "model.ffn=64", "model.codes=600", "data.context=256"]
    keys += [f"data.sources.0.pack={folder}/pairs.pack", f"run.init_from={folder}/start"]
    keys += ["validation.every=3", "validation.batches=1", "batch.size=2", "batch.micro_size=1"]
    keys += [f"validation.sources.0.pack={folder}/held.pack", "objective.tokens=answer"]
    keys += ["run.dir=run", "run.steps=6", "run.log_every=1", "run.tensorboard=true"]
    words = ["dpo-tiny-cpu", *keys, "objective.reference.folder=stored"]

    stored = emu3("reference", *words, cwd=tmp_path)
    halfway = emu3("train", *words, "run.stop_after=3", cwd=tmp_path)
    end = emu3("train", *words, cwd=tmp_path)
    status = emu3("status", "run", cwd=tmp_path)

    assert (stored.code, stored.said.count("rows of 2 sources")) == (0, 1), stored.said
    assert (halfway.code, end.code) == (0, 0), halfway.said + end.said
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    trained = [row for row in rows if "loss" in row]
    held_out = [row for row in rows if "validation/loss" in row]
    assert [row["step"] for row in trained] == [1, 2, 3, 4, 5, 6]
    assert trained[0]["preference_loss"] == pytest.approx(np.log(2), abs=1e-6)
    names = {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"}
    names |= {"logps/chosen", "logps/rejected", "entropy", "num_tokens", "kl/code", "nll/chosen"}
    assert all(isinstance(trained[0][name], float) for name in names)
    assert [row["step"] for row in held_out] == [3, 6]
    assert all(0 <= row["validation/rewards/accuracies"] <= 1 for row in held_out)
    assert f"loss: {trained[-1]['loss']:.4f}" in status.said


# Refusals, one line each


def refusal(recipe: Recipe) -> str:
    with pytest.raises(InputError) as error:
        run_training(recipe)
    assert "\n" not in str(error.value)
    return str(error.value)


def changed(recipe: Recipe, **values: Any) -> Recipe:
    """A recipe with other values by dotted keys, written with `__`."""
    dumped = recipe.model_dump(mode="json")
    for key, value in values.items():
        *parents, last = key.split("__")
        section = dumped
        for parent in parents:
            section = section[parent]
        section[last] = value
    return Recipe.model_validate(dumped)


def test_a_reference_that_is_not_there(folder: Path):
    recipe = recipe_of(folder, "nowhere")

    assert "nowhere: no columns there; make them with emu3 reference" in refusal(recipe)


@pytest.mark.parametrize("kind", ["stored", "live"])
def test_a_reference_of_another_model_than_the_start(folder: Path, tmp_path: Path, kind: str):
    other = save_start(pack_pairs(tmp_path, "others", pairs_of_images(5, seed=3)), tmp_path)
    recipe = changed(recipe_of(folder), run__init_from=str(other))
    recipe = live(recipe, folder) if kind == "live" else recipe

    line = refusal(recipe)

    assert "the reference must be the model that training starts from" in line
    assert str(other) in line


def test_a_reference_of_another_vocabulary(folder: Path):
    recipe = changed(recipe_of(folder), model__codes=512)

    assert "stored: a reference of another vocabulary" in refusal(recipe)


def test_a_pack_that_the_reference_does_not_hold(folder: Path, tmp_path: Path):
    pack = pack_pairs(tmp_path, "new", pairs_of_images(3, seed=5))
    recipe = changed(recipe_of(folder), data__sources=[{"pack": str(pack)}])

    assert f"stored: holds nothing of {pack} as it is now" in refusal(recipe)


def test_a_reference_in_another_precision(folder: Path):
    line = refusal(changed(recipe_of(folder), precision="bf16"))

    assert "stored: a reference in fp32, precision=bf16 in the recipe" in line


def test_a_reference_of_another_layout_unless_the_recipe_takes_it(folder: Path):
    recipe = changed(recipe_of(folder), batch__micro_size=2)

    line = refusal(recipe)

    assert "(batch.micro_size=1; the recipe has batch.micro_size=2)" in line
    section = recipe.objective.reference.model_copy(update={"any_layout": True})
    reference = build_reference(section, recipe.model.vocabulary())
    layout = layout_of(recipe.parallel, recipe.batch, recipe.backend)
    said = check_reference(reference, None, layout, "fp32")
    assert said is not None
    assert "a reference of another layout (batch.micro_size=1; here batch.micro_size=2)" in said


def test_another_reference_is_not_overwritten(folder: Path):
    ended = emu3_reference(folder, recipe_of(folder, batch={"micro_size": 2}))

    assert ended.code == 2
    assert "stored: holds another reference" in ended.said
    assert "choose another objective.reference.folder" in ended.said


def test_recipes_without_a_stored_reference(folder: Path):
    with pytest.raises(InputError, match="nothing is stored for it; set kind: stored and folder"):
        store_reference(live(recipe_of(folder), folder))


def test_packs_whose_documents_stand_alone(folder: Path, tmp_path: Path):
    recipe = changed(recipe_of(folder), data__sources=[{"pack": str(make_packs(tmp_path))}])
    recipe = changed(recipe, data__context=128, validation=None)

    assert "tiny.pack: its documents stand alone, the objective needs groups of 2" in refusal(
        recipe
    )


def test_emu3_check_knows_a_reference_and_finds_damage(folder: Path, tmp_path: Path):
    copy = shutil.copytree(folder / "stored", tmp_path / "copy")
    whole = emu3("check", copy, cwd=tmp_path)
    values = next(copy.glob("*.values"))
    values.write_bytes(b"\1" + values.read_bytes()[1:])
    damaged = emu3("check", copy, cwd=tmp_path)

    assert (whole.code, damaged.code) == (0, 2)
    assert "column reference of " in whole.said
    assert "make them again with emu3 reference" in damaged.said
