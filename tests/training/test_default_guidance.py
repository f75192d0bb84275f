"""Checkpoints say whether their weights ever saw empty captions, and guidance follows from it."""

from pathlib import Path

import pytest
from support.faults import run_job
from support.tiny import make_packs, tiny_recipe

from emu3_megatron.checkpoints.folders import (
    find_checkpoint,
    read_checkpoint,
    saw_empty_captions,
)
from emu3_megatron.config import Recipe
from emu3_megatron.generation.sampling import default_guidance, warn_of_guidance


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_packs(tmp_path_factory.mktemp("packs"))


def trained(pack: Path, folder: Path, share: float, **run: object) -> dict:
    """What the checkpoint says of a run that left out captions with this probability."""
    recipe: Recipe = tiny_recipe(pack, folder, run={"steps": 2, **run}, data={"null_prompt": share})
    (end,) = run_job(recipe)
    assert end.code == 0, end.said
    return read_checkpoint(find_checkpoint(folder))


def test_a_run_without_captions_at_times_says_so_and_so_do_runs_from_its_weights(pack, tmp_path):
    first = trained(pack, tmp_path / "first", 0.5)
    later = trained(pack, tmp_path / "later", 0.0, init_from=str(tmp_path / "first"))
    other = trained(pack, tmp_path / "other", 0.0)

    assert [about["null_prompt"] for about in (first, later, other)] == [True, True, False]
    assert first["grid"] == other["grid"]
    assert all(2 <= side <= 5 for side in first["grid"]), "as make_packs draws them"


def test_of_imported_weights_it_is_not_known():
    assert saw_empty_captions({"null_prompt": None}) is None


@pytest.mark.parametrize(("saw", "guidance"), [(True, 3.0), (None, 3.0), (False, 1.0)])
def test_guidance_is_used_by_default_unless_it_was_never_trained(saw, guidance):
    assert default_guidance({"null_prompt": saw}) == guidance


def test_a_recipe_that_says_its_guidance_is_followed():
    recipe = {"sample": {"guidance": 1.5}}

    assert default_guidance({"null_prompt": True, "recipe": recipe}) == 1.5
    assert default_guidance({"null_prompt": True, "recipe": {"sample": None}}) == 3.0


def test_checkpoints_of_earlier_versions_were_never_trained_so():
    assert saw_empty_captions({"recipe": {"run": {"init_from": None}}}) is False
    assert default_guidance({}) == 1.0


def test_of_weights_that_they_imported_it_is_not_known():
    assert saw_empty_captions({"imported_from": "Emu3-Gen"}) is None
    assert saw_empty_captions({"recipe": {"run": {"init_from": "imported"}}}) is None


@pytest.mark.parametrize(
    ("saw", "guidance", "lines"), [(False, 3.0, 1), (False, 1.0, 0), (True, 3.0, 0), (None, 3.0, 0)]
)
def test_guidance_that_was_not_trained_gets_one_line(saw, guidance, lines, capsys):
    warn_of_guidance(guidance, {"null_prompt": saw})

    said = capsys.readouterr().err
    assert said.count("\n") == lines
    assert ("data.null_prompt" in said) is bool(lines)
