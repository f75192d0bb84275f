"""Base classes of recipes: sections, fields with their mark for resume, components by kind."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from emu3_megatron.errors import InputError

Resume = Literal["free", "semantic", "fixed"]
REQUIRED: Any = ...


class Config(BaseModel):
    """A part of a recipe: typed, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    # Keys that have another name now, dotted: old ones are refused by the new name.
    RENAMED: ClassVar[Mapping[str, str]] = {}
    READER: ClassVar[str] = ""  # of a whole recipe, the command


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

    @classmethod
    def __pydantic_init_subclass__(cls, **arguments: Any) -> None:
        """A built-in says its kind as a Literal; what the key is stands here alone."""
        super().__pydantic_init_subclass__(**arguments)
        field, described = cls.model_fields["kind"], Component.model_fields["kind"]
        field.description = field.description or described.description
        field.json_schema_extra = field.json_schema_extra or described.json_schema_extra


def load_kind(kind: str) -> Any:
    """The object that `package.module:Name` names.

    Raises:
        InputError: it cannot be imported.
    """
    module, _, name = kind.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a third party's module raises while it is imported
        raise InputError(f"kind {kind}: cannot be imported ({_line_of(error)})") from error


@dataclass(frozen=True)
class ChosenByKind:
    """Annotates a field that holds the section of one of several kinds: see `chosen_by_kind`.

    Attributes:
        builtin: schema of each built-in kind.
        default: the kind of a section that names none.
    """

    builtin: Mapping[str, type[Component]]
    default: str | None

    def kind_of(self, section: Mapping[str, Any]) -> str | None:
        """The kind that a section names, or the default."""
        kind = section.get("kind", self.default)
        return None if kind is None else str(kind)

    def schema_of(self, kind: str | None) -> type[Component]:
        """The schema of a kind's section.

        Raises:
            ValueError: there is no such kind.
        """
        if kind is not None and ":" in kind:
            return _third_party_schema(kind)
        if kind is None or kind not in self.builtin:
            names = ", ".join([*self.builtin, "package.module:Name"])
            found = "missing" if kind is None else f"no kind {kind!r}"
            raise ValueError(f"{found}; choose one of {names}")
        return self.builtin[kind]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self._validate, handler(source))

    def _validate(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kind = self.kind_of(value)
        try:
            schema = self.schema_of(kind)
        except ValueError as error:
            raise _error_at("kind", str(error), kind) from None
        return schema.model_validate({**value, "kind": kind})


def chosen_by_kind(
    builtin: Mapping[str, type[Component]], default: str | None = None
) -> ChosenByKind:
    """Annotates a field that holds the section of one of several kinds.

    `Annotated[SerializeAsAny[Schema], chosen_by_kind(...)]`: Schema is what all kinds have in
    common.

    Args:
        builtin: schema of each built-in kind.
        default: the kind of a section that names none.
    """
    return ChosenByKind(builtin, default)


def _error_at(key: str, message: str, value: Any) -> ValidationError:
    error = PydanticCustomError("kind", "{message}", {"message": message})
    return ValidationError.from_exception_data(
        "section", [InitErrorDetails(type=error, loc=(key,), input=value)]
    )


def _third_party_schema(kind: str) -> type[Component]:
    try:
        schema = getattr(load_kind(kind), "Config", None)
    except InputError as error:
        raise ValueError(str(error).removeprefix("kind ")) from None
    if not (isinstance(schema, type) and issubclass(schema, Component)):
        raise ValueError(f"{kind}: has no attribute Config that is a Component")
    return schema


def build(section: Component, builtin: Mapping[str, Callable[..., Any]], *arguments: Any) -> Any:
    """The component of a section: the class of its kind, called with it and `arguments`.

    Raises:
        InputError: a third party's class cannot be built.
    """
    if ":" not in section.kind:
        return builtin[section.kind](section, *arguments)
    factory = load_kind(section.kind)
    try:
        return factory(section, *arguments)
    except (InputError, OSError):
        raise
    except Exception as error:
        raise InputError(
            f"kind {section.kind}: cannot be built ({_line_of(error)}); "
            "emu3 --debug in front of the command shows where"
        ) from error


def _line_of(error: Exception) -> str:
    """An error as one line; ImportError and AttributeError say enough without their type."""
    text = " ".join(str(error).split())
    return (
        text
        if isinstance(error, ImportError | AttributeError)
        else f"{type(error).__name__}: {text}"
    )
