"""Opens the sources that a recipe names, and fills in the hash of their content."""

from collections.abc import Sequence
from typing import Any

from emu3_megatron.config.base import build
from emu3_megatron.config.data import PackSource, SourceSection
from emu3_megatron.data.groups import check_prompts
from emu3_megatron.data.packing.pack_set import PackSet
from emu3_megatron.data.source import Source
from emu3_megatron.errors import InputError
from emu3_megatron.vocabulary import Vocabulary


def _open_packs(section: PackSource, vocabulary: Vocabulary) -> PackSet:
    return PackSet(section.pack, vocabulary)


_SCAN = 1 << 24  # tokens of prompts compared while opening all shards of a source
_BUILTIN = {"pack": _open_packs}


def open_source(section: SourceSection, vocabulary: Vocabulary) -> Source:
    """The source of a section.

    Raises:
        InputError: it is missing, damaged, or of another vocabulary.
    """
    return build(section, _BUILTIN, vocabulary)


def open_sources(
    key: str,
    sections: Sequence[SourceSection],
    vocabulary: Vocabulary,
    context: int,
    group: int | None = None,
) -> tuple[list[Source], list[SourceSection]]:
    """The sources of a list of sections, and the sections with what the sources hold filled in.

    Args:
        key: of the list in the recipe, for messages.
        group: documents must come in groups of so many, each under one prompt.

    Raises:
        InputError: a source cannot be opened, is of another context or not of such groups, does not
            hold what its section says, or two hold the same.
    """
    sources = [open_source(section, vocabulary) for section in sections]
    first_of: dict[str, Any] = {}
    for number, (section, source) in enumerate(zip(sections, sources, strict=True)):
        _check(f"{key}.{number}", section, source, context)
        if group is not None:
            _check_groups(source, group)
        if (first := first_of.setdefault(source.content, source)) is not source:
            raise InputError(
                f"{key}: {first} and {source} hold the same; name one, with the weight of both"
            )
    filled = [
        section.model_copy(update={"content": source.content})
        for section, source in zip(sections, sources, strict=True)
    ]
    return sources, filled


def _check(key: str, section: SourceSection, source: Source, context: int) -> None:
    if source.context != context:
        raise InputError(
            f"{source}: packed for a context of {source.context:,}, data.context is {context:,}; "
            "pack again or change the recipe"
        )
    if section.content not in (None, source.content):
        raise InputError(
            f"{source}: holds {source.content[:12]}…, {key}.content says "
            f"{str(section.content)[:12]}…; leave it out of the recipe, or name the packs it is of"
        )


def _check_groups(source: Source, group: int) -> None:
    """Refuse a source that gives no such groups; prompts are compared again as rows are read."""
    found = getattr(source, "group", None)
    if found != group:
        alone = "its documents stand alone" if found is None else f"it holds groups of {found}"
        raise InputError(
            f"{source}: {alone}, the objective needs groups of {group} side by side; name packs of "
            "a shard of groups, as emu3 preferences build writes them"
        )
    if isinstance(source, PackSet):
        for store in source.stores:
            check_prompts(store, _SCAN // len(source.stores))
