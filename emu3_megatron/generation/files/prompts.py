"""Reads a file of prompts: .txt with a prompt a line, or .jsonl with what is to be drawn."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from emu3_megatron.errors import InputError
from emu3_megatron.grammar import Meta
from emu3_megatron.vision.tokenizer import TEMPORAL_FACTOR

Grid = Callable[[str], tuple[int, int]]
"""The rows and columns of codes for a caption that names none."""
Kind = Literal["image", "clip", "text"]

_FIELDS = {
    *("prompt", "kind", "negative", "seed"),
    *("height", "width", "frames", "fps", "seconds"),
}


@dataclass(frozen=True)
class Prompt:
    """What to draw or to answer.

    Attributes:
        text: the caption, or what the answer goes on from.
        kind: of the samples.
        chat: the text is a question, asked in the template of Emu3-Chat.
        meta: the grid; None for answers.
        negative: caption that guidance leads away from.
        seed: of its first sample; None: counted from the command's.
    """

    text: str
    kind: Kind
    chat: bool = False
    meta: Meta | None = None
    negative: str = ""
    seed: int | None = None


@dataclass(frozen=True)
class Defaults:
    """What a line of prompts leaves open.

    Attributes:
        grid: of an image or a clip.
        kind: of what is drawn.
        frames, fps: latent frames and rate of a clip; None: a record names them.
        negative: of images and clips.
    """

    grid: Grid
    kind: Kind = "image"
    frames: int | None = None
    fps: float | None = None
    negative: str = ""


def read_prompts(path: Path, defaults: Defaults) -> list[Prompt]:
    """The prompts of a file, in order.

    A record of .jsonl has `prompt` and, where they differ from the defaults, `kind` (image, clip,
    text or chat), `negative`, `seed`, `height` and `width` of the grid, and of a clip `frames`
    (latent, four of pixels each), `fps` and `seconds`.

    Raises:
        InputError: the file cannot be read, or a line is empty, no prompt or there twice; with the
            number of the line.
    """
    prompts: dict[Prompt, int] = {}
    for number, line in enumerate(_lines(path), 1):
        where = f"{path}: line {number}"
        record = _record(line, where) if path.suffix == ".jsonl" else {"prompt": line}
        prompt = prompt_of(record, defaults, where)
        if prompt in prompts:
            raise InputError(f"{where}: the same prompt as line {prompts[prompt]}; leave one out")
        prompts[prompt] = number
    if not prompts:
        raise InputError(f"{path}: no prompts; write one a line")
    return list(prompts)


def first_seeds(prompts: Sequence[Prompt], each: int, seed: int) -> list[int]:
    """Seed of each prompt's first sample: its own, else counted on from `seed`."""
    return [
        seed + number * each if prompt.seed is None else prompt.seed
        for number, prompt in enumerate(prompts)
    ]


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
    if not record["prompt"].strip():
        raise InputError(f"{where}: an empty prompt")
    if unknown := sorted(record.keys() - _FIELDS):
        raise InputError(
            f"{where}: unknown field {unknown[0]}; known: {', '.join(sorted(_FIELDS))}"
        )
    return record


def prompt_of(record: dict[str, Any], defaults: Defaults, where: str) -> Prompt:
    """What a record asks for; raises InputError, in which `where` names the record."""
    text = record["prompt"].strip()
    kind = record.get("kind", "clip" if "frames" in record else defaults.kind)
    if kind in ("text", "chat"):
        return Prompt(text, "text", chat=kind == "chat")
    if kind not in ("image", "clip"):
        raise InputError(f"{where}: kind {kind!r}; choose image, clip, text or chat")
    negative, seed = record.get("negative", defaults.negative), record.get("seed")
    if not isinstance(negative, str):
        raise InputError(f"{where}: negative={negative!r}: give a text")
    if seed is not None:
        seed = _whole(seed, "seed", where, least=0)
    return Prompt(text, kind, False, _meta(record, kind, defaults, where), negative, seed)


def _meta(record: dict[str, Any], kind: Kind, defaults: Defaults, where: str) -> Meta:
    known = dict(zip(("height", "width"), defaults.grid(record["prompt"].strip()), strict=True))
    height, width = (_whole(record.get(n, d), n, where) for n, d in known.items())
    if kind == "image":
        return Meta(height, width)
    frames = _whole(record.get("frames", defaults.frames), "frames", where)
    fps = _positive(record.get("fps", defaults.fps), "fps", where)
    seconds = record.get("seconds", round(TEMPORAL_FACTOR * frames / fps, 3))
    return Meta(height, width, frames, fps, _positive(seconds, "seconds", where))


def _whole(value: Any, name: str, where: str, least: int = 1) -> int:
    if not isinstance(value, int) or value < least:
        raise InputError(f"{where}: {name}={value!r}: give a whole number, {least} or more")
    return value


def _positive(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InputError(f"{where}: {name}={value!r}: give a number above 0")
    return value
