"""What every part of a recipe shares."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from emu3_megatron.errors import InputError

Resume = Literal["free", "semantic", "fixed"]
REQUIRED: Any = ...


class Config(BaseModel):
    """A part of a recipe: typed, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    # Keys that have another name now, dotted: old ones are refused by the new name.
    RENAMED: ClassVar[Mapping[str, str]] = {}


def free(default: Any, description: str, **limits: Any) -> Any:
    """A field that may change whenever a run resumes: it decides how fast or where a run goes."""
    return _field("free", default, description, limits)


def semantic(default: Any, description: str, **limits: Any) -> Any:
    """A field that decides what a run learns: it changes at a resume only with `--accept`."""
    return _field("semantic", default, description, limits)


def fixed(default: Any, description: str, **limits: Any) -> Any:
    """A field that cannot change within a run: samples or weights would no longer fit."""
    return _field("fixed", default, description, limits)


def _field(resume: Resume, default: Any, description: str, limits: dict[str, Any]) -> Any:
    return Field(default, description=description, json_schema_extra={"resume": resume}, **limits)


def resume_of(section: type[BaseModel], name: str) -> Resume:
    """Whether a field may change at a resume. Fields without a mark are semantic."""
    extra = section.model_fields[name].json_schema_extra
    return extra["resume"] if isinstance(extra, dict) and "resume" in extra else "semantic"  # type: ignore[return-value]


class Component(Config):
    """The section of something that a recipe chooses by `kind`.

    A built-in kind has a name; `package.module:Name` imports a third party's class, whose
    attribute `Config`, a subclass of this one, is the schema of its section.
    """

    kind: str = semantic(REQUIRED, "name of a built-in, or package.module:Name")


def load_kind(kind: str) -> Any:
    """The object that `package.module:Name` names.

    Raises:
        InputError: it cannot be imported.
    """
    module, _, name = kind.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"kind {kind}: cannot be imported ({error})") from None


def chosen_by_kind(
    builtin: Mapping[str, type[Component]], default: str | None = None
) -> BeforeValidator:
    """Annotates a field that holds the section of one of several kinds.

    `Annotated[SerializeAsAny[Schema], chosen_by_kind(...)]`: Schema is what all kinds have in
    common.

    Args:
        builtin: schema of each built-in kind.
        default: the kind of a section that names none.
    """

    def validate(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kind = str(value.get("kind", default))
        if ":" in kind:
            return _third_party_schema(kind).model_validate({**value, "kind": kind})
        if kind not in builtin:
            names = ", ".join([*builtin, "package.module:Name"])
            raise ValueError(f"no kind {kind!r}; choose one of {names}")
        return builtin[kind].model_validate({**value, "kind": kind})

    return BeforeValidator(validate)


def _third_party_schema(kind: str) -> type[Component]:
    try:
        schema = getattr(load_kind(kind), "Config", None)
    except InputError as error:
        raise ValueError(str(error)) from None
    if not (isinstance(schema, type) and issubclass(schema, Component)):
        raise ValueError(f"kind {kind}: has no attribute Config that is a Component")
    return schema


def build(section: Component, builtin: Mapping[str, Callable[..., Any]], *arguments: Any) -> Any:
    """The component of a section: the class of its kind, called with it and `arguments`."""
    factory = load_kind(section.kind) if ":" in section.kind else builtin[section.kind]
    return factory(section, *arguments)
