"""`emu3 reference`: stores the log-probabilities that a DPO recipe compares the policy with."""

from pathlib import Path
from typing import TYPE_CHECKING

from emu3_megatron.cli.arguments import Overrides, RecipeName
from emu3_megatron.config import Recipe, load_recipe
from emu3_megatron.config.data import MixtureConfig
from emu3_megatron.config.objectives import DpoConfig, StoredReference
from emu3_megatron.errors import InputError

if TYPE_CHECKING:
    from emu3_megatron.data.source import Source


def reference(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Store the reference of a DPO recipe.

    It is the log-probabilities of the model that training starts from, of every row of data.sources
    and validation.sources, computed in the recipe's own layout and written to
    objective.reference.folder. Stopped, it goes on where it was when it is started again.

    Several processes: torchrun --nproc-per-node N -m emu3_megatron reference RECIPE ...
    """
    store_reference(load_recipe(Recipe, recipe, overrides or []))


def store_reference(recipe: Recipe) -> Path:
    """Store the reference of a recipe; returns its folder.

    Raises:
        InputError: the recipe has no stored reference, its data or checkpoint cannot be used, or
            the folder holds another one.
    """
    objective, section = _sections_of(recipe)

    from emu3_megatron import parallel
    from emu3_megatron.alignment.reference import describe, is_stored, layout_of, write_reference
    from emu3_megatron.data.rows import RowBuilder
    from emu3_megatron.model.opening import find_weights
    from emu3_megatron.parallel.votes import on_first_rank
    from emu3_megatron.training.engines import frozen_decoder
    from emu3_megatron.training.interfaces import EngineSetting
    from emu3_megatron.training.objectives.dpo import label_weights

    sources = _sources_of(recipe)
    vocabulary = recipe.model.vocabulary()
    mesh = parallel.start(recipe.parallel.tensor, recipe.parallel.context)
    mesh.seed(recipe.run.seed, 0)
    assert recipe.run.init_from is not None, "a DPO recipe has one"
    checkpoint = find_weights(recipe.run.init_from, recipe.model)
    layout = layout_of(recipe.parallel, recipe.batch, recipe.backend)
    about = describe(checkpoint, vocabulary, layout, recipe.precision)
    if on_first_rank(lambda: is_stored(section.folder, about, sources)):
        on_first_rank(lambda: print(f"{section.folder}: holds this reference already"))
        return section.folder
    write_reference(
        section.folder,
        about,
        sources,
        frozen_decoder(recipe.engine, EngineSetting.of(recipe), checkpoint),
        builder=RowBuilder(
            vocabulary,
            recipe.context,
            label_weights(objective),
            context_size=mesh.context_size,
            group=2,
        ),
        micro_size=recipe.batch.micro_size,
        mesh=mesh,
    )
    rows = sum(map(len, sources))
    on_first_rank(lambda: print(f"{section.folder}: {rows:,} rows of {len(sources)} sources"))
    return section.folder


def _sections_of(recipe: Recipe) -> tuple[DpoConfig, StoredReference]:
    if not isinstance(recipe.objective, DpoConfig):
        raise InputError(
            f"objective.kind={recipe.objective.kind}: needs no reference; name a recipe of kind dpo"
        )
    section = recipe.objective.reference
    if not isinstance(section, StoredReference):
        raise InputError(
            f"objective.reference.kind={section.kind}: nothing is stored for it; set kind: stored "
            "and folder, where it is to be written"
        )
    return recipe.objective, section


def _sources_of(recipe: Recipe) -> "list[Source]":
    from emu3_megatron.data.opening import open_sources

    if not isinstance(recipe.data, MixtureConfig):
        raise InputError(
            f"data.kind={recipe.data.kind}: its rows are not known before a run; set "
            "objective.reference to {kind: live, checkpoint: …}"
        )
    named = {"data.sources": recipe.data.sources}
    if recipe.validation:
        named["validation.sources"] = recipe.validation.sources
    vocabulary = recipe.model.vocabulary()
    opened = [
        source
        for key, sections in named.items()
        for source in open_sources(key, sections, vocabulary, recipe.context, group=2)[0]
    ]
    return list({source.content: source for source in opened}.values())
