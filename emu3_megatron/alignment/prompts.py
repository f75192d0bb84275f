"""Reads a file of prompts: .txt with a prompt a line, or .jsonl with what is to be drawn."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu3_megatron.alignment.samples import Kind
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import Meta
from emu3_megatron.vision.tokenizer import TEMPORAL_FACTOR

Grid = Callable[[str], tuple[int, int]]
"""The rows and columns of codes for a caption that names none."""

_FIELDS = {"prompt", "kind", "height", "width", "frames", "fps", "seconds"}


@dataclass(frozen=True)
class Prompt:
    """What to draw or to answer.

    Attributes:
        text: the caption, or what the answer goes on from.
        kind: of the samples.
        chat: the text is a question, asked in the template of Emu3-Chat.
        meta: the grid; None for answers.
    """

    text: str
    kind: Kind
    chat: bool = False
    meta: Meta | None = None


def read_prompts(path: Path, grid: Grid) -> list[Prompt]:
    """The prompts of a file, in order.

    A record of .jsonl has `prompt` and, where they differ from the defaults, `kind` (image, clip,
    text or chat), `height` and `width` of the grid, and of a clip `frames` (latent, four of pixels
    each), `fps` and `seconds`.

    Raises:
        InputError: the file cannot be read, or a line is empty, no prompt or there twice; with the
            number of the line.
    """
    prompts: dict[Prompt, int] = {}
    for number, line in enumerate(_lines(path), 1):
        where = f"{path}: line {number}"
        record = _record(line, where) if path.suffix == ".jsonl" else {"prompt": line}
        prompt = _prompt(record, grid, where)
        if prompt in prompts:
            raise InputError(f"{where}: the same prompt as line {prompts[prompt]}; leave one out")
        prompts[prompt] = number
    if not prompts:
        raise InputError(f"{path}: no prompts; write one a line")
    return list(prompts)


def _lines(path: Path) -> Iterator[str]:
    if path.suffix not in (".txt", ".jsonl"):
        raise InputError(f"{path}: prompts are read from .txt and .jsonl")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8; convert it") from None
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), 1):
        if not line.strip():
            raise InputError(f"{path}: line {number}: empty; leave it out")
        yield line.strip()


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        raise InputError(f"{where}: not JSON") from None
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise InputError(f"{where}: no record with a text `prompt`")
    if unknown := sorted(record.keys() - _FIELDS):
        raise InputError(
            f"{where}: unknown field {unknown[0]}; known: {', '.join(sorted(_FIELDS))}"
        )
    return record


def _prompt(record: dict[str, Any], grid: Grid, where: str) -> Prompt:
    text = record["prompt"].strip()
    if not text:
        raise InputError(f"{where}: an empty prompt")
    kind = record.get("kind", "clip" if "frames" in record else "image")
    if kind in ("text", "chat"):
        return Prompt(text, "text", chat=kind == "chat")
    if kind not in ("image", "clip"):
        raise InputError(f"{where}: kind {kind!r}; choose image, clip, text or chat")
    height, width = grid(text)
    height, width = (_size(record, *size, where) for size in (("height", height), ("width", width)))
    if kind == "image":
        return Prompt(text, "image", meta=Meta(height, width))
    frames, fps = (_size(record, name, None, where) for name in ("frames", "fps"))
    seconds = record.get("seconds", TEMPORAL_FACTOR * frames / fps)
    if not isinstance(seconds, int | float) or not seconds > 0:
        raise InputError(f"{where}: seconds={seconds!r}: give a number above 0")
    return Prompt(text, "clip", meta=Meta(height, width, frames, fps, seconds))


def _size(record: dict[str, Any], name: str, default: int | None, where: str) -> int:
    value = record.get(name, default)
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{where}: {name}={value!r}: give a whole number above 0")
    return value
