"""`emu3 train`: the one place that puts objective, data and hooks together."""

from emu3_megatron.config import Recipe


def run_training(recipe: Recipe, accept: bool = False) -> None:
    """Train as a recipe says, with the components that it names by kind."""
    from emu3_megatron.config.base import build
    from emu3_megatron.data.mixed import MixtureData
    from emu3_megatron.data.setting import Setting
    from emu3_megatron.evaluation.samples import DrawSamples
    from emu3_megatron.training import train
    from emu3_megatron.training.objectives import build_objective

    vocabulary = recipe.model.vocabulary()
    objective = build_objective(recipe.objective, vocabulary)
    setting = Setting(vocabulary, recipe.batch, recipe.run.seed, objective.weights)
    data = build(recipe.data, {"mixture": MixtureData}, setting)
    hooks = [build(section, {}) for section in recipe.hooks]
    if recipe.sample:
        hooks.append(DrawSamples(recipe.sample, vocabulary))
    train(recipe, objective=objective, data=data, hooks=hooks, accept=accept)
