"""Recipes from YAML, with dotted overrides and errors that name the field."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from emu3_megatron.config.base import Config
from emu3_megatron.errors import InputError

Schema = TypeVar("Schema", bound=Config)


def load_recipe(
    schema: type[Schema], name: str | Path | None, overrides: Sequence[str] = ()
) -> Schema:
    """Read a recipe.

    Args:
        schema: what the recipe must fit.
        name: a YAML file, or the name of one that ships with the package; None where overrides and
            defaults are all there is.
        overrides: `dotted.key=value`, the value read as YAML.

    Raises:
        InputError: no such recipe, no such key, or a value that does not fit.
    """
    values = {} if name is None else read_recipe(name)
    where = "command line" if name is None else find_recipe(name)
    for override in overrides:
        _apply(values, override)
    for old, new in renamed_keys(values, schema.RENAMED):
        raise InputError(f"{where}: {old}: is called {new} now; change the recipe")
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: {_describe(schema, error)}") from None


def read_recipe(name: str | Path) -> dict[str, Any]:
    """The keys and values of a recipe, as they are written. Raises InputError."""
    path = find_recipe(name)
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: a recipe is a mapping of keys to values")
    return values


def find_recipe(name: str | Path) -> Path:
    """The path of a recipe given by path or by the name it ships under."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if str(name) in shipped:
        return shipped[str(name)]
    raise InputError(f"{name}: no such recipe file; shipped recipes: {', '.join(sorted(shipped))}")


def shipped_recipes() -> dict[str, Path]:
    folder = Path(str(files("emu3_megatron.config"))) / "recipes"
    return {path.stem: path for path in folder.glob("*.yaml")}


def renamed_keys(values: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The old keys that a recipe holds, each with its new name."""
    for old, new in names.items():
        section: Any = values
        *parents, last = old.split(".")
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if isinstance(section, dict) and last in section:
            yield old, new


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise InputError(f"{override}: an override is written dotted.key=value")
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise InputError(f"{override}: {parent} holds no keys")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"{override}: the value is not YAML") from None


def _describe(schema: type[BaseModel], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{field}: no such key{_suggest(schema, first['loc'])}"
    if first["type"] == "missing":
        return f"{field}: missing; give it a value"
    message = first["msg"].removeprefix("Value error, ")
    if isinstance(first["input"], dict):  # a rule over several fields, which names them itself
        return message
    return f"{field}: {message} (given {first['input']!r})"


def _suggest(schema: type[BaseModel], location: tuple[int | str, ...]) -> str:
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        annotation = schema.model_fields[str(part)].annotation
        while get_args(annotation):
            annotation = get_args(annotation)[0]
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        schema = annotation
    keys = list(schema.model_fields)
    close = difflib.get_close_matches(str(location[-1]), keys, 1)
    return f"; did you mean {close[0]}?" if close else f"; choose one of {', '.join(keys)}"
