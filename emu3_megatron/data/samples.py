"""The samples of a run: those it learns from, and those it is only measured on."""

from collections.abc import Sequence

from emu3_megatron.config import Recipe
from emu3_megatron.config.data import MixtureConfig, PackSource
from emu3_megatron.config.training import NextTokenConfig
from emu3_megatron.data.batches import PackedSamples
from emu3_megatron.data.mixture import Mixture
from emu3_megatron.data.packing.pack_set import PackSet
from emu3_megatron.data.phases import Phase, PhasedMixture, phases_of
from emu3_megatron.errors import InputError
from emu3_megatron.vocabulary import Vocabulary


def open_samples(
    recipe: Recipe, vocabulary: Vocabulary, phases: Sequence[Phase] = (), since: int = 0
) -> PackedSamples:
    """The recipe's mixture, as numbered samples.

    Args:
        phases: of the mixture, where the run has a past.
        since: the first sample that will be asked for.

    Raises:
        InputError: packs are missing, damaged, or of another context or vocabulary.
    """
    phases = phases or phases_of([], _mixture(recipe).sources, 0)
    return _rows(recipe, vocabulary, PhasedMixture(phases, vocabulary, recipe.run.seed, since))


def open_held_out(recipe: Recipe, vocabulary: Vocabulary) -> PackedSamples:
    """The recipe's validation data: the same samples in every evaluation of every run.

    Raises:
        InputError: as for `open_samples`; or there are fewer packs than are asked for.
    """
    assert recipe.validation is not None
    sources = [source for source in recipe.validation.sources if isinstance(source, PackSource)]
    packs = [PackSet(source.pack, vocabulary) for source in sources]
    mixture = Mixture(packs, [source.weight for source in sources])  # no run's own seed
    count = recipe.validation.batches * recipe.batch.size
    drawn = {(source.path, pack) for source, pack in map(mixture.__getitem__, range(count))}
    if len(drawn) < count:
        raise InputError(
            f"validation.batches={recipe.validation.batches} x batch.size={recipe.batch.size} "
            f"would read packs of validation.sources twice; lower it, or pack more held-out data"
        )
    return _rows(recipe, vocabulary, mixture)


def _mixture(recipe: Recipe) -> MixtureConfig:
    assert isinstance(recipe.data, MixtureConfig)
    return recipe.data


def _rows(
    recipe: Recipe, vocabulary: Vocabulary, mixture: Mixture | PhasedMixture
) -> PackedSamples:
    assert isinstance(recipe.objective, NextTokenConfig)
    for source in mixture.sources:
        if source.context != recipe.context:
            raise InputError(
                f"{source.path}: packed for a context of {source.context:,}, data.context is "
                f"{recipe.context:,}; pack again or change the recipe"
            )
    return PackedSamples(
        mixture,
        vocabulary,
        tuple(recipe.objective.weights.values()),
        _mixture(recipe).reset_at_documents,
        recipe.parallel.context,
    )
