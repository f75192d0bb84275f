"""What the section `engine` of a recipe accepts, and what it refuses in one line."""

from pathlib import Path
from typing import Any

import pytest
from support.engines import on_deepspeed
from support.tiny import tiny_recipe

from emu3_megatron.config import Recipe
from emu3_megatron.config.engines import PROJECTIONS
from emu3_megatron.config.load import recipe_of
from emu3_megatron.errors import InputError


def refused(**sections: Any) -> str:
    """The one line that refuses a recipe on DeepSpeed with these sections."""
    engine = {"kind": "deepspeed", **sections.pop("engine", {})}
    values = tiny_recipe(Path("a.pack"), Path("run")).model_dump(mode="json")
    with pytest.raises(InputError) as caught:
        recipe_of(Recipe, {**values, "engine": engine, **sections}, "recipe.yaml")
    (line,) = str(caught.value).splitlines()
    return line


def test_a_recipe_runs_on_deepspeed_by_its_kind_alone():
    recipe = tiny_recipe(Path("a.pack"), Path("run"), **on_deepspeed())

    assert (recipe.engine.stage, recipe.engine.offload, recipe.engine.lora) == (2, "none", None)


def test_adapters_are_beside_every_matrix_of_the_layers_unless_told():
    recipe = tiny_recipe(Path("a.pack"), Path("run"), **on_deepspeed(lora={"rank": 8}))

    assert recipe.engine.lora.targets == list(PROJECTIONS)


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ({"stage": 4}, "engine.stage"),
        ({"stage": 0, "offload": "optimizer"}, "offload=optimizer is not possible at stage=0"),
        ({"stage": 2, "offload": "weights"}, "offload=weights is not possible at stage=2; set "),
        ({"zero": {"stage": 3}}, "zero.stage: set stage and offload of the engine instead"),
        ({"lora": {"targets": ["qkv"]}}, "'qkv' matches no matrix of the layers; choose among q_"),
        ({"lora": {"targets": ["lm_head"]}}, "'lm_head' matches no matrix of the layers"),
        ({"lora": {"targets": []}}, "engine.lora.targets"),
    ],
)
def test_a_stage_or_an_adapter_that_cannot_be_is_refused(engine: dict[str, Any], says: str):
    assert says in refused(engine=engine)


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"parallel": {"tensor": 2}}, "parallel.tensor=2: the engine deepspeed has data parallel"),
        ({"parallel": {"context": 2}}, "parallel.context=2: the engine deepspeed"),
        (
            {"parallel": {"distributed_optimizer": True}},
            "parallel.distributed_optimizer=true: the engine deepspeed",
        ),
        ({"backend": {"layers": "transformer_engine"}}, "backend.layers=transformer_engine: the"),
        ({"recompute": "selective"}, "recompute=selective: the engine deepspeed"),
        ({"precision": "bf16", "engine": {"stage": 0}}, "engine.stage=0 keeps no fp32 weights"),
        (
            {
                "sample": {
                    "every": 1,
                    "tokenizer": "t",
                    "prompts": [{"caption": "a", "height": 1, "width": 1}],
                }
            },
            "sample: the engine deepspeed draws no images",
        ),
    ],
)
def test_what_only_megatron_can_do_is_refused_by_name(sections: dict[str, Any], says: str):
    assert says in refused(**sections)
