"""Loads recipes from YAML, with dotted overrides and errors that name the field."""

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from emu3_megatron.config.base import Config
from emu3_megatron.config.schemas import SCHEMAS, schema_of
from emu3_megatron.config.sections import schema_at
from emu3_megatron.config.yaml_text import read_yaml
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
    _refuse_renamed(values, schema, f"{where}: ", "; change the recipe")
    for override in overrides:
        set_dotted(values, override)
    _refuse_renamed(values, schema, "", "")
    return recipe_of(schema, values, where)


def recipe_of(schema: type[Schema], values: dict[str, Any], where: str | Path) -> Schema:
    """The recipe of these keys and values.

    Args:
        where: they are from, for the message.

    Raises:
        InputError: a key or a value does not fit.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: {_mistake(schema, error, values)}") from None


def saved_recipe(schema: type[Schema], values: Mapping[str, Any], where: str | Path) -> Schema:
    """The recipe that a checkpoint or a run holds; keys that have another name now are moved.

    Args:
        where: it was saved, for the message.

    Raises:
        InputError: a key or a value does not fit.
    """
    moved = copy.deepcopy(dict(values))
    for old, new in list(renamed_keys(moved, schema.RENAMED)):
        *parents, last = old.split(".")
        section = reduce(lambda section, key: section[key], parents, moved)
        value = section.pop(last)
        *parents, last = new.split(".")
        section = reduce(lambda section, key: section.setdefault(key, {}), parents, moved)
        section[last] = value
    return recipe_of(schema, moved, where)


def read_recipe(name: str | Path) -> dict[str, Any]:
    """The keys and values of a recipe, as they are written. Raises InputError."""
    path = find_recipe(name)
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except yaml.constructor.ConstructorError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise InputError(f"{path}: line {line}: {error.problem}") from None
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


def _refuse_renamed(values: dict[str, Any], schema: type[Config], where: str, way: str) -> None:
    for old, new in renamed_keys(values, schema.RENAMED):
        raise InputError(f"{where}{old}: is called {new} now{way}")


def set_dotted(values: dict[str, Any], override: str) -> None:
    """Apply `dotted.key=value`, the value read as YAML; sections that are missing are made.

    Items of lists are reached by their index; the index behind the last item appends.

    Raises:
        InputError: not an override, or nothing has such keys.
    """
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise InputError(f"{override}: an override is written dotted.key=value")
    try:
        value = read_yaml(text)
    except yaml.YAMLError as error:
        why = f" ({error.problem})" if isinstance(error, yaml.constructor.ConstructorError) else ""
        raise InputError(f"{override}: the value is not YAML{why}") from None
    section: Any = values
    for depth, part in enumerate(parts[:-1], start=1):
        place = _place(section, part, parts[: depth - 1], override)
        if section[place] is None:
            section[place] = [] if parts[depth].isdecimal() else {}
        section = section[place]
    section[_place(section, parts[-1], parts[:-1], override)] = value


def _place(section: Any, part: str, above: Sequence[str], override: str) -> Any:
    """The key or index of a part, where None stands if nothing stood there."""
    name = ".".join(above)
    if isinstance(section, dict):
        section.setdefault(part, None)
        return part
    if not isinstance(section, list):
        raise InputError(f"{override}: {name} holds no keys")
    last = len(section)
    if not part.isdecimal():
        raise InputError(f"{override}: {name} is a list; write {name}.0 and so on")
    if int(part) > last:
        items = f"{last} item" + ("s" if last != 1 else "")
        raise InputError(f"{override}: {name} has {items}; give an index from 0 to {last}")
    if int(part) == last:
        section.append(None)
    return int(part)


def _mistake(schema: type[Config], error: ValidationError, values: dict[str, Any]) -> str:
    """What is wrong with a recipe: above all, that another command reads it."""
    shared = lambda of: len(values.keys() & of.model_fields.keys())
    other = schema_of(values)
    if schema in SCHEMAS and shared(other) > shared(schema):
        return f"a recipe of another kind, which {other.READER} reads"
    return _describe(schema, error, values)


def _describe(schema: type[BaseModel], error: ValidationError, values: dict[str, Any]) -> str:
    found = error.errors(include_url=False)
    # A key that nothing reads says more than those that are missing then.
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    field = ".".join(str(part) for part in first["loc"])
    if field == "defaults":
        return "defaults: a recipe builds on no others; emu3 recipe NAME prints a whole one"
    if first["type"] == "extra_forbidden":
        return f"{field}: no such key{_suggest(schema, first['loc'], values)}"
    if first["type"] == "missing":
        return f"{field}: missing; give it a value"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "kind":
        return f"{field}: {message}"
    if isinstance(first["input"], dict):  # a rule over several fields, which names them itself
        return f"{field}: {message}" if field else message
    return f"{field}: {message} (given {first['input']!r})"


def _suggest(
    schema: type[BaseModel], location: tuple[int | str, ...], values: dict[str, Any]
) -> str:
    section = schema_at(schema, location[:-1], values)
    if section is None:
        return ""
    keys = list(section.model_fields)
    close = difflib.get_close_matches(str(location[-1]), keys, 1)
    return f"; did you mean {close[0]}?" if close else f"; choose one of {', '.join(keys)}"
