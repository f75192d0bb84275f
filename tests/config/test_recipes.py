"""Recipes: those that ship, overrides, and errors that name the field."""

import pytest
import yaml

from emu3_megatron.config import ModelConfig, Recipe, load_recipe
from emu3_megatron.config.load import saved_recipe, shipped_recipes
from emu3_megatron.config.prepare import PrepareRecipe
from emu3_megatron.config.tokenizer_training import TokenizerRecipe
from emu3_megatron.errors import InputError

VALID = {
    "run": {"dir": "run", "steps": 10},
    "model": {"preset": "emu3-tiny"},
    "data": {"context": 64, "sources": [{"pack": "a.pack"}]},
    "batch": {"size": 4},
    "optimizer": {"lr": 1e-3},
}


@pytest.fixture
def load(tmp_path):
    """A function that loads the valid recipe under overrides."""

    def load(*overrides, **sections):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**VALID, **sections}), encoding="utf-8")
        return load_recipe(Recipe, path, overrides)

    return load


# Shipped recipes


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_load(name):
    schemas = {"tokenizer": TokenizerRecipe, "prepare": PrepareRecipe}
    load_recipe(schemas.get(name.partition("-")[0], Recipe), name)


@pytest.mark.parametrize(
    ("name", "context"), [("stage1-8b-h100x64", 5120), ("stage2-8b-h100x64", 131_072)]
)
def test_8b_stages_hold_the_published_values(name, context):
    recipe = load_recipe(Recipe, name)

    assert recipe.data.context == context
    assert (recipe.optimizer.lr, recipe.optimizer.schedule.min_lr) == (5e-5, 0.0)
    assert recipe.model.dropout == 0.1
    assert recipe.objective.weights == {"text": 1.0, "structure": 1.0, "code": 0.5}
    model = recipe.model
    assert (model.layers, model.hidden, model.heads, model.kv_heads) == (32, 4096, 32, 8)
    assert (model.ffn, model.rope_base, model.norm_epsilon) == (14_336, 1e6, 1e-5)
    assert model.vocabulary().size == 184_622


@pytest.mark.parametrize("stage", ["stage1", "stage2", "quality"])
def test_8b_stages_fit_their_64_gpus(stage):
    recipe = load_recipe(Recipe, f"{stage}-8b-h100x64")

    data_parallel, left = divmod(64, recipe.parallel.tensor * recipe.parallel.context)
    assert left == 0
    assert recipe.batch.size % (recipe.batch.micro_size * data_parallel) == 0


def test_defaults_of_the_loss_are_emu3s(load):
    assert load().objective.weights == {"text": 1.0, "structure": 1.0, "code": 0.5}


# Presets


def test_a_preset_fills_what_is_not_given():
    model = ModelConfig.model_validate({"preset": "emu3-tiny", "hidden": 64})

    assert (model.hidden, model.layers, model.heads, model.head_dim) == (64, 2, 4, 16)


def test_a_model_needs_no_preset():
    sizes = {"layers": 1, "hidden": 8, "heads": 2, "kv_heads": 1, "ffn": 8}

    model = ModelConfig.model_validate({**sizes, "text": "bytes", "codes": 16})

    assert model.vocabulary().size == 256 + 211 + 16


# Overrides


def test_overrides_reach_into_sections(load):
    recipe = load(
        "optimizer.lr=3e-4", "model.hidden=64", "parallel.sequence=true", "parallel.tensor=2"
    )

    assert recipe.optimizer.lr == 3e-4
    assert recipe.model.hidden == 64
    assert (recipe.parallel.tensor, recipe.parallel.sequence) == (2, True)


def test_overrides_make_sections_that_the_file_lacks(load):
    assert load("objective.weights.code=0").objective.weights["code"] == 0


def test_override_values_are_yaml(load):
    recipe = load("data.sources=[{pack: b.pack, weight: 2}]", "run.wandb=null", "run.dir=a=b")

    assert recipe.data.sources[0].weight == 2
    assert recipe.run.wandb is None
    assert str(recipe.run.dir) == "a=b"


def test_the_later_override_wins(load):
    assert load("run.steps=20", "run.steps=30").run.steps == 30


def test_overrides_reach_items_of_lists(load):
    recipe = load("data.sources.0.weight=3", "data.sources.1.pack=b.pack")

    assert [(str(s.pack), s.weight) for s in recipe.data.sources] == [("a.pack", 3), ("b.pack", 1)]


def test_overrides_make_lists_that_the_file_lacks(load):
    prompt = "sample.prompts.0={caption: a cat, height: 2, width: 2}"

    recipe = load("sample.every=5", "sample.tokenizer=t", prompt)

    assert recipe.sample.prompts[0].caption == "a cat"


# What is refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.scedule=1", r"optimizer\.scedule: no such key; did you mean schedule\?"),
        ("optimzer.lr=1", r"optimzer: no such key; did you mean optimizer\?"),
        ("parallel.pipeline=2", r"parallel\.pipeline: no such key; choose one of tensor, context,"),
        ("run.steps=many", r"run\.steps: .*valid integer.* \(given 'many'\)"),
        ("run.steps=0", r"run\.steps: .*greater than 0 \(given 0\)"),
        ("run.steps=null", r"run\.steps: .*valid integer.* \(given None\)"),
        ("optimizer.lr=null", r"optimizer\.lr: .*valid number"),
        ("optimizer.lr=.inf", r"optimizer\.lr: .*finite number"),
        ("optimizer.beta1=1", r"optimizer\.beta1: .*less than 1"),
        ("model.dropout=1", r"model\.dropout: .*less than 1"),
        ("precision=fp16", r"precision: Input should be 'fp32' or 'bf16' \(given 'fp16'\)"),
        ("data.sources=[]", r"data\.sources: .*at least 1 item"),
        ("data.sources=[{weight: 1}]", r"data\.sources\.0\.pack: missing; give it a value"),
        ("data.sources=[{pack: a, wieght: 1}]", r"sources\.0\.wieght: no such key; did you mean w"),
        ("model.preset=emu4", r"no such preset; choose one of emu3-8b, emu3-mini, emu3-tiny"),
        ("model.heads=3", r"heads \(3\) must divide hidden \(256\) and be a multiple of kv_heads"),
        ("model.kv_heads=3", r"heads \(4\) must .* be a multiple of kv_heads \(3\)"),
        ("parallel.tensor=3", r"parallel\.tensor=3 does not divide model\.heads=4; choose a div"),
        ("parallel.tensor=4", r"parallel\.tensor=4 does not divide model\.kv_heads=2; choose"),
        ("parallel.overlap_param_gather=true", r"needs parallel\.distributed_optimizer=true and"),
        ("parallel.overlap_tensor=true", r"needs parallel\.sequence=true and backend\.layers"),
        ("backend.fp8=delayed", r"backend\.fp8=delayed needs backend\.layers=transformer_engine"),
        ("recompute=[norm]", r"recompute"),
        ("parallel.sequence=true", r"parallel\.sequence=true needs parallel\.tensor of 2 or more"),
        ("parallel.context=3", r"data\.context=64 must be a multiple of 3"),
        ("batch.micro_size=3", r"batch\.size=4 must be a multiple of batch\.micro_size=3"),
        ("optimizer.schedule.min_lr=1", r"schedule\.min_lr=1\.0 is above optimizer\.lr=0\.001"),
        (
            "optimizer.schedule.warmup_steps=11",
            r"schedule\.warmup_steps=11 is more than run\.steps=10",
        ),
        ("run.steps", r"run\.steps: an override is written dotted\.key=value"),
        ("run.steps.few=1", r"run\.steps\.few=1: run\.steps holds no keys"),
        ("data.sources.2.pack=a", r"data\.sources\.2\.pack=a: data\.sources has 1 item; .* 0 to 1"),
        (
            "data.sources.pack=a",
            r"sources\.pack=a: data\.sources is a list; write data\.sources\.0",
        ),
        (".steps=1", r"\.steps=1: an override is written dotted\.key=value"),
        ("run.steps=[", r"run\.steps=\[: the value is not YAML"),
    ],
)
def test_an_override_that_does_not_fit_is_named(load, override, message):
    with pytest.raises(InputError, match=message) as error:
        load(override)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("weights={text: 1}", "objective.weights"),
        ("z_loss=1", "objective.z_loss"),
        ("loss_backend=auto", "backend.loss"),
        ("parallel.attention=auto", "backend.attention"),
        ("optimizer.min_lr=0", "optimizer.schedule.min_lr"),
        ("optimizer.warmup_steps=1", "optimizer.schedule.warmup_steps"),
        ("optimizer.decay_steps=9", "optimizer.schedule.steps"),
    ],
)
def test_a_key_that_has_another_name_now_is_refused_by_it(load, old, new):
    key = old.partition("=")[0]

    with pytest.raises(InputError, match=rf"^{key}: is called {new} now$"):
        load(old)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("{kind: constant, min_lr: 0}", r"schedule\.min_lr: no such key; choose one of"),
        ("{kind: linear, cooldown_steps: 2}", r"schedule\.cooldown_steps: no such key"),
        ("{kind: step}", r"schedule\.kind: no kind 'step'; choose one of cosine, linear, const"),
        ("{kind: wsd}", r"schedule\.cooldown_steps: missing; give it a value"),
        ("{kind: wsd, cooldown_steps: 2, cooldown: exp}", r"schedule\.cooldown: .*'linear', 'cos"),
        ("{kind: constant, warmup_steps: 11}", r"schedule\.warmup_steps=11 is more than run\.st"),
        (
            "{steps: 5, warmup_steps: 6}",
            r"warmup_steps=6 is more than optimizer\.schedule\.steps=5",
        ),
        (
            "{kind: wsd, warmup_steps: 4, cooldown_steps: 7}",
            r"warmup_steps=4 \+ cooldown_steps=7 is more than run\.steps=10; lower it",
        ),
    ],
)
def test_each_schedule_has_its_own_keys(load, schedule, message):
    with pytest.raises(InputError, match=message) as error:
        load(f"optimizer.schedule={schedule}")
    assert "\n" not in str(error.value)


def test_a_saved_recipe_is_read_under_the_new_keys(load):
    values = load("optimizer.schedule={warmup_steps: 2, steps: 8}").model_dump(mode="json")
    old = {**values, "optimizer": {"lr": 1e-3, "min_lr": 0.0, "warmup_steps": 2, "decay_steps": 8}}

    assert saved_recipe(Recipe, old, "a checkpoint").model_dump(mode="json") == values
    assert "decay_steps" in old["optimizer"], "what was given is left as it was"


def test_a_recipe_with_an_old_key_is_named(load):
    with pytest.raises(InputError, match=r"recipe\.yaml: z_loss: is called objective\.z_loss now"):
        load(z_loss=1.0)


def test_the_executor_of_prepare_was_its_engine():
    with pytest.raises(InputError, match=r"^run\.engine: is called run\.executor now$"):
        load_recipe(PrepareRecipe, "prepare-tiny-cpu", ["run.engine=local"])


def test_context_and_sequence_parallel_cut_together(load):
    with pytest.raises(InputError, match=r"data\.context=66 must be a multiple of 4"):
        load("data.context=66", "parallel={tensor: 2, context: 2, sequence: true}")


def test_a_missing_key_is_named(load):
    with pytest.raises(InputError, match=r"recipe\.yaml: optimizer\.lr: missing; give it a value"):
        load(optimizer={"clip": 1.0})


def test_a_missing_section_is_named(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump({k: v for k, v in VALID.items() if k != "batch"}), encoding="utf-8"
    )

    with pytest.raises(InputError, match=r"recipe\.yaml: batch: missing"):
        load_recipe(Recipe, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("run: [", r"recipe\.yaml: not YAML"),
        ("- run", r"recipe\.yaml: a recipe is a mapping of keys to values"),
        ("", r"recipe\.yaml: a recipe is a mapping of keys to values"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(content, encoding="utf-8")

    with pytest.raises(InputError, match=message) as error:
        load_recipe(Recipe, path)
    assert "\n" not in str(error.value)


def test_a_name_that_no_recipe_has(tmp_path):
    with pytest.raises(
        InputError, match=r"stage9: no such recipe file; shipped recipes: .*stage1-8b"
    ):
        load_recipe(Recipe, "stage9")


def test_samples_and_context_parallel_exclude_each_other(load):
    prompts = [{"caption": "a cat", "height": 2, "width": 2}]

    with pytest.raises(InputError, match=r"sample: images are drawn with parallel\.context=1"):
        load(
            "parallel.context=2", sample={"every": 5, "tokenizer": "tokenizer", "prompts": prompts}
        )


@pytest.mark.parametrize(
    ("schema", "recipe", "command"),
    [
        (Recipe, "prepare-tiny-cpu", "emu3 prepare"),
        (Recipe, "tokenizer-tiny-cpu", "emu3 tokenizer train"),
        (PrepareRecipe, "stage1-tiny-cpu", "emu3 train"),
    ],
)
def test_a_recipe_of_another_kind_is_refused_by_the_command_that_reads_it(schema, recipe, command):
    with pytest.raises(InputError, match=f"a recipe of another kind, which {command} reads"):
        load_recipe(schema, recipe)


@pytest.mark.parametrize("name", ["cudnn", "flash", "flash3", "flash4"])
def test_attention_that_cannot_drop_is_refused_with_dropout(load, name):
    assert load(f"backend.attention={name}", "model.dropout=0").backend.attention == name

    with pytest.raises(InputError, match=rf"backend.attention={name}: .* set model.dropout=0, or"):
        load(f"backend.attention={name}", "model.dropout=0.1")
