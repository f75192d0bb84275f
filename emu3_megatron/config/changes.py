"""Compares a recipe with that of the checkpoint, and refuses what may not change at resume.

Each field of a recipe says whether it may change at a resume: see `base.free`, `base.semantic` and
`base.fixed`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from emu3_megatron.config.base import Component, Resume, resume_of
from emu3_megatron.errors import InputError


@dataclass(frozen=True)
class Change:
    """A field that has another value now.

    Attributes:
        field: its dotted name.
        resume: whether it may change when a run resumes.
    """

    field: str
    before: Any
    after: Any
    resume: Resume

    def __str__(self) -> str:
        return f"{self.field}: {_short(self.before)} → {_short(self.after)}"


def changes(before: BaseModel, after: BaseModel, prefix: str = "") -> Iterator[Change]:
    """The fields that differ between two recipes of one schema, by dotted name."""
    for name in type(after).model_fields:
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            yield from _changes(f"{prefix}{name}", old, new, resume_of(type(after), name))


def _changes(field: str, old: Any, new: Any, resume: Resume) -> Iterator[Change]:
    """Into sections of one kind, and into lists of them that are equally long."""
    if isinstance(new, BaseModel) and type(old) is type(new):
        yield from changes(old, new, f"{field}.")
    elif _are_sections(old) and _are_sections(new) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            if one != other:
                yield from _changes(f"{field}.{index}", one, other, resume)
    else:
        yield Change(field, old, new, resume)


def _are_sections(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, BaseModel) for item in value)


def refuse_changes(where: Any, found: list[Change], accept: bool) -> None:
    """Refuse what may not change when a run resumes.

    Args:
        where: folder of the run, for the message.
        accept: take changes of what the run learns.

    Raises:
        InputError: a fixed field changed, or a semantic one and `accept` is not given.
    """
    listed = lambda resume: ", ".join(str(change) for change in found if change.resume == resume)
    if fixed := listed("fixed"):
        raise InputError(
            f"{where}: cannot change within a run: {fixed}; "
            "choose another run.dir, with run.init_from to keep the weights"
        )
    if (semantic := listed("semantic")) and not accept:
        raise InputError(
            f"{where}: the recipe changed since the checkpoint: {semantic}; "
            "add --accept to go on with the new one"
        )


def _short(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = _given(value)
    elif _are_sections(value):
        value = [_given(item) for item in value]
    return str(value)


def _given(section: BaseModel) -> dict[str, Any]:
    """The kind of a section, and what it says beside its defaults."""
    kind = {"kind": section.kind} if isinstance(section, Component) else {}
    return kind | section.model_dump(mode="json", exclude_defaults=True)
