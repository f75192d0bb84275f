"""Finds the schema of each section of a recipe, by its kind where it has one."""

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel

from emu3_megatron.config.base import ChosenByKind


class Slot(NamedTuple):
    """A place in a recipe that holds a value.

    Attributes:
        annotation: of the value, without Annotated and None.
        chosen: where the value is a section whose schema its kind decides.
    """

    annotation: Any
    chosen: ChosenByKind | None

    def schema(self, value: Any) -> type[BaseModel] | None:
        """The schema of the section that is or would be here; None for what is no section."""
        if self.chosen is not None:
            section = value if isinstance(value, Mapping) else {}
            try:
                return self.chosen.schema_of(self.chosen.kind_of(section))
            except ValueError:
                return None
        is_section = isinstance(self.annotation, type) and issubclass(self.annotation, BaseModel)
        return self.annotation if is_section else None

    def item(self) -> "Slot":
        """The place of an item of a list."""
        arguments = get_args(self.annotation)
        return _slot(arguments[0] if arguments else Any, ())


def slot_of(schema: type[BaseModel], name: str) -> Slot:
    """The place of a field."""
    field = schema.model_fields[name]
    return _slot(field.annotation, field.metadata)


def _slot(annotation: Any, metadata: Sequence[Any]) -> Slot:
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        return _slot(annotation, [*metadata, *more])
    if get_origin(annotation) in (Union, types.UnionType):
        some = [part for part in get_args(annotation) if part is not type(None)]
        return _slot(some[0], metadata)
    chosen = next((data for data in metadata if isinstance(data, ChosenByKind)), None)
    return Slot(annotation, chosen)


def schema_at(
    schema: type[BaseModel], location: Sequence[int | str], values: Any
) -> type[BaseModel] | None:
    """The schema of the section at a location of a recipe; None where there is no section.

    Args:
        schema: of the recipe.
        location: keys and indices.
        values: the recipe as it is written, which names the kinds.
    """
    slot = Slot(schema, None)
    for part in location:
        if isinstance(part, int):
            slot = slot.item()
            values = values[part] if isinstance(values, list) and part < len(values) else None
            continue
        section = slot.schema(values)
        if section is None or part not in section.model_fields:
            return None
        slot = slot_of(section, part)
        values = values.get(part) if isinstance(values, Mapping) else None
    return slot.schema(values)


def sections_of(schema: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A schema and those of all sections in it, of every built-in kind."""
    yield schema
    for name in schema.model_fields:
        slot = slot_of(schema, name)
        if get_origin(slot.annotation) is list:
            slot = slot.item()
        inner = slot.chosen.builtin.values() if slot.chosen else [slot.schema(None)]
        for section in filter(None, inner):
            yield from sections_of(section)
