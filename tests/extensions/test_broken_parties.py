"""A third party's mistake ends in one line that names it, and no checkpoint is worse for it."""

from pathlib import Path
from typing import Any

import pytest
from support.faults import run_job
from support.tiny import make_packs, tiny_recipe

from emu3_megatron.config import Recipe

COUNTING = {"context": 128, "stride": 3}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_packs(tmp_path_factory.mktemp("packs"))


def four_steps(pack: Path, folder: Path, **sections: Any) -> Recipe:
    values = tiny_recipe(pack, folder, run={"steps": 4}).model_dump(mode="json")
    return Recipe.model_validate(values | sections)


def hook(name: str, **keys: Any) -> dict[str, Any]:
    return {"hooks": [{"kind": f"support.broken:{name}", **keys}]}


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (
            {"data": {"kind": "support.broken:Ended", **COUNTING}},
            "data: it ended after step 2 of 4",
        ),
        (
            {"objective": {"kind": "support.broken:OtherSums"}},
            "objective: the sums of one micro-batch are loss, weight, text, extra",
        ),
        (hook("CalledTrainer"), "hooks: CalledTrainer has the name 'trainer', which is taken"),
        (
            {"hooks": 2 * [{"kind": "support.extensions:MovingAverage"}]},
            "hooks: MovingAverage has the name 'moving average', which is taken",
        ),
        (hook("HoldsASet"), "state of set: Object of type set is not JSON serializable"),
        (hook("HoldsNothing"), "state of nothing: None; let its state_dict() return a dict"),
        (hook("NoHook"), "hooks: support.broken:NoHook is not a hook"),
        (
            hook("CannotBeBuilt"),
            "kind support.broken:CannotBeBuilt: cannot be built (RuntimeError: no such licence)",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_saved(pack, tmp_path, sections, line):
    recipe = four_steps(pack, tmp_path / "run", **sections)

    (end,) = run_job(recipe)

    assert end.code == 2
    assert line in end.said
    assert not list(recipe.run.dir.glob("checkpoints/step-*"))


def test_data_that_gives_more_is_not_asked_for_more(pack, tmp_path):
    data = {"kind": "support.broken:Endless", **COUNTING}
    recipe = four_steps(pack, tmp_path / "run", data=data)

    (end,) = run_job(recipe)

    assert end.code == 0, end.said
    assert [path.name for path in recipe.run.dir.glob("checkpoints/step-*")] == ["step-00000004"]


def test_a_tensor_of_another_shape_is_not_loaded(pack, tmp_path):
    (first,) = run_job(four_steps(pack, tmp_path / "run", **hook("HoldsATensor")))
    changed = four_steps(pack, tmp_path / "run", **hook("HoldsATensor", size=5))

    (end,) = run_job(changed)

    assert first.code == 0, first.said
    assert end.code == 2
    assert "step-00000004: does not fit the run" in end.said
    assert "tensor for key tensor.state" in end.said
