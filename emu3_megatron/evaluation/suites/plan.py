"""What a suite's folder is to hold, which samples it is made of, and the seed of each."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emu3_megatron.errors import InputError

_LONGEST_NAME = 255  # bytes of a file name on the common file systems


@dataclass(frozen=True)
class SuiteFile:
    """A file that is to be drawn.

    Attributes:
        path: in the suite's folder.
        prompt: what is drawn.
        numbers: of the samples of this prompt that the file shows; several stand side by side.
    """

    path: Path
    prompt: str
    numbers: tuple[int, ...]


@dataclass
class Plan:
    """All that a suite's folder is to hold.

    Attributes:
        files: to be drawn, in the order of the prompts.
        texts: further files with their content.
    """

    files: list[SuiteFile] = field(default_factory=list)
    texts: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """A benchmark suite.

    Attributes:
        name: in commands and seeds.
        title: as its authors write it.
        folder: what its own scorer is given, inside the folder of the evaluation.
        guidance: with which the paper drew, None where it does not say.
        each: samples of a prompt by the suite's rules.
        is_free: another number of samples can be scored too.
        read: the plan of prompts files and a number of samples.
        needs_squares: its scorer takes square images only.
        is_video: clips are drawn.
        next: what its own scorer is called with, `{folder}` filled in.
    """

    name: str
    title: str
    folder: str
    guidance: float | None
    each: int
    is_free: bool
    read: Callable[[Sequence[Path], int], Plan]
    next: str
    needs_squares: bool = False
    is_video: bool = False

    def plan(self, prompts: Sequence[Path], each: int | None) -> Plan:
        """What the folder is to hold.

        Args:
            prompts: the suite's own files.
            each: samples of a prompt; None: as the suite says.

        Raises:
            InputError: a file cannot be used, with the line; or the suite scores no such number.
        """
        if each not in (None, self.each) and not self.is_free:
            raise InputError(f"--number {each}: {self.title} scores {self.each} of each prompt")
        return self.read(prompts, each or self.each)


def seed_of(suite: str, prompt: str, number: int, seed: int) -> int:
    """Of one sample: a hash, so that it depends on nothing else that is drawn.

    Args:
        number: of the sample among those of its prompt.
        seed: of the whole evaluation.
    """
    text = json.dumps([suite, prompt, number, seed])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def check_name(name: str, where: str) -> None:
    """Raises InputError when a prompt that names a file cannot; `where` names its line."""
    if "/" in name or "\0" in name:
        raise InputError(f"{where}: the prompt names a file, and has a '/'; reword it")
    if len(name.encode()) > _LONGEST_NAME:
        raise InputError(
            f"{where}: the prompt names a file, and {name[:20]!r}… has {len(name.encode())} bytes; "
            f"shorten it to {_LONGEST_NAME}"
        )


def read_text(path: Path) -> str:
    """Raises InputError when there is no such file of UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8; convert it") from None


def only_one(prompts: Sequence[Path], title: str) -> Path:
    """Raises InputError when there are several."""
    if len(prompts) != 1:
        raise InputError(f"--prompts: {title} has one; name it once")
    return prompts[0]


def take(record: Any, name: str, kind: type, where: str) -> Any:
    """A field of a record; raises InputError when it has none of this kind."""
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind) or not value:
        wanted = "text" if kind is str else "list"
        raise InputError(f"{where}: no {wanted} `{name}`; give the suite's own file")
    return value
