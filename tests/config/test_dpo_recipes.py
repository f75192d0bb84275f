"""Recipes of DPO: what does not fit is refused by name, with the way out."""

from pathlib import Path

import pytest
from support.pairs import dpo_recipe

from emu3_megatron.config.changes import changes


def recipe(**sections):
    return dpo_recipe(Path("pairs.pack"), Path("run"), Path("start"), **sections)


def objective(**keys):
    return {"kind": "dpo", "reference": {"folder": "reference"}, **keys}


def test_a_reference_is_stored_unless_the_recipe_says_otherwise():
    assert recipe(objective=objective()).objective.reference.kind == "stored"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"dropout": 0.1}}, r"model.dropout=0.1: .*; set model.dropout=0"),
        ({"data": {"reset_at_documents": False}}, "set data.reset_at_documents=true"),
        ({"run": {"init_from": None}}, "run.init_from: .* name the checkpoint to start from"),
        ({"objective": objective(variant="normalized")}, "set objective.beta to 1 or more"),
        (
            {"objective": objective(variant="ipo", label_smoothing=0.1)},
            "label_smoothing=0.1 is not defined for variant=ipo; .* variant=sigmoid or normalized",
        ),
        ({"objective": objective(label_smoothing=0.5)}, "label_smoothing"),
        ({"objective": objective(variant="kto")}, "variant"),
        ({"objective": {"reference": {"kind": "stored"}}}, "folder"),
    ],
)
def test_what_does_not_fit_is_refused(sections, message):
    with pytest.raises(ValueError, match=message):
        recipe(**sections)


def test_a_reference_may_move_within_a_run_and_may_not_be_another():
    before, moved, another = (
        recipe(objective=objective(reference={"folder": folder, "content": content}))
        for folder, content in (("a", "1"), ("b", "1"), ("a", "2"))
    )

    (place,) = changes(before, moved)
    (model,) = changes(before, another)
    assert (place.field, place.resume) == ("objective.reference.folder", "free")
    assert (model.field, model.resume) == ("objective.reference.content", "semantic")
