"""Prints a recipe as YAML with every key, its description and its default."""

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from emu3_megatron.config.base import Config
from emu3_megatron.config.sections import slot_of

_WIDTH = 100
_STEP = "  "
_HEAD = (
    "# Above each key: what it is (its default; whether it may change when a run resumes: free is",
    "# yes, semantic with --accept, fixed no).",
)


def describe(recipe: Config) -> str:
    """The recipe as YAML; it loads again as the same recipe."""
    return "\n".join([*_HEAD, *_section(recipe, "", commented=True)]) + "\n"


def summary_of(path: Path) -> str:
    """The first sentence of the comment that a recipe begins with."""
    comment: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# ") or line.startswith("#  "):  # an example is indented
            break
        comment.append(line.removeprefix("# "))
    return " ".join(comment).partition(". ")[0].rstrip(".:")


def _section(section: BaseModel, indent: str, commented: bool) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if commented:
            yield from _comment(field, value, indent)
        yield from _value(name, value, _leaf(section, name), indent, commented)
        if value is None and commented:
            yield from _absent(slot_of(type(section), name).schema(None), indent)


def _leaf(section: BaseModel, name: str) -> str:
    return _flow(section.model_dump(mode="json", include={name})[name])


def _value(name: str, value: Any, leaf: str, indent: str, commented: bool) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield f"{indent}{name}:"
        yield from _section(value, indent + _STEP, commented)
    elif _are_sections(value):
        yield f"{indent}{name}:"
        explained: set[type] = set()
        for item in value:
            yield f"{indent}{_STEP}-"
            new = commented and type(item) not in explained
            yield from _section(item, indent + 2 * _STEP, new)
            explained.add(type(item))
    else:
        yield f"{indent}{name}: {leaf}"


def _absent(schema: type[BaseModel] | None, indent: str) -> Iterator[str]:
    """The keys of a section that is not there, as comments."""
    for name, field in schema.model_fields.items() if schema else ():
        yield from _wrapped(f"{name}: {_about(field, None)}", f"{indent}#{_STEP}")


def _comment(field: FieldInfo, value: Any, indent: str) -> Iterator[str]:
    yield from _wrapped(_about(field, value), f"{indent}# ")


def _about(field: FieldInfo, value: Any) -> str:
    """What a field is, its default, and whether it may change when a run resumes."""
    facts = []
    if not isinstance(value, BaseModel):
        default = field.get_default(call_default_factory=True)
        facts.append("no default" if field.is_required() else f"default {_flow(_plain(default))}")
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "resume" in extra:
        facts.append(str(extra["resume"]))
    description = " ".join((field.description or "").split())
    return f"{description} ({'; '.join(facts)})" if facts else description


def _plain(value: Any) -> Any:
    """A default as JSON holds it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _are_sections(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(i, BaseModel) for i in value)


def _wrapped(text: str, prefix: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=prefix, subsequent_indent=prefix, break_on_hyphens=False
    )


def _flow(value: Any) -> str:
    """A value as YAML in one line."""
    text = yaml.safe_dump(
        value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False
    )
    text = text.removesuffix("...\n").strip()
    return json.dumps(value, ensure_ascii=False) if "\n" in text else text
