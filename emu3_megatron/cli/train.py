"""`emu3 train`: the one place that puts objective, data, engine and hooks together."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from emu3_megatron.cli.arguments import Overrides, RecipeName
from emu3_megatron.cli.kinds import TRACKER
from emu3_megatron.config import Recipe, load_recipe
from emu3_megatron.config.base import Component, build
from emu3_megatron.config.objectives import DpoConfig
from emu3_megatron.errors import InputError

if TYPE_CHECKING:
    from emu3_megatron.runs.interfaces import Hook


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="resume though the recipe changed what is learned")
    ] = False,
) -> None:
    """Train a decoder as a recipe says.

    Resumes by itself from the newest checkpoint in the recipe's run.dir.

    Several processes: torchrun --nproc-per-node N -m emu3_megatron train RECIPE ...
    """
    run_training(load_recipe(Recipe, recipe, overrides or []), accept)


def run_training(recipe: Recipe, accept: bool = False) -> None:
    """Train as a recipe says, with the components that it names by kind."""
    from emu3_megatron.data.mixed import MixtureData
    from emu3_megatron.data.setting import Setting
    from emu3_megatron.evaluation.samples import DrawSamples
    from emu3_megatron.training import train
    from emu3_megatron.training.objectives import build_objective

    vocabulary = recipe.model.vocabulary()
    objective = build_objective(recipe.objective, vocabulary)
    setting = Setting.of(vocabulary, recipe.batch, recipe.run.seed, objective)
    data = build(recipe.data, {"mixture": MixtureData}, setting)
    hooks = [_build_hook(section) for section in recipe.hooks]
    if isinstance(recipe.objective, DpoConfig):
        hooks.append(_watch(recipe, recipe.objective, objective))
    if recipe.sample:
        hooks.append(DrawSamples(recipe.sample, vocabulary))
    train(recipe, objective=objective, data=data, hooks=hooks, accept=accept)


def _watch(recipe: Recipe, section: DpoConfig, objective: Any) -> "Hook":
    """See that the reference of a DPO run is its start, before the first step and after it."""
    from emu3_megatron.alignment.reference import check_reference, layout_of
    from emu3_megatron.alignment.watching import WatchPreferenceLoss
    from emu3_megatron.training.objectives.preference import loss_without_preference

    is_new = not (recipe.run.dir / "checkpoints" / TRACKER).is_file()
    layout = layout_of(recipe.parallel, recipe.batch, recipe.backend)
    init_from = recipe.run.init_from if is_new else None
    noise = check_reference(objective.reference, init_from, layout, recipe.precision)
    at_start = loss_without_preference(section.variant, section.beta)
    warmup_steps = recipe.optimizer.schedule.warmup_steps
    return WatchPreferenceLoss(at_start, recipe.precision, warmup_steps, noise)


def _build_hook(section: Component) -> "Hook":
    from emu3_megatron.runs.interfaces import Hook

    hook = build(section, {})
    if not (isinstance(hook, Hook) and isinstance(hook.name, str)):
        raise InputError(
            f"hooks: {section.kind} is not a hook; derive it from "
            "emu3_megatron.runs.interfaces.Hook and give it a name"
        )
    return hook
