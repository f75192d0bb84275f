"""Finds images and videos in a folder, and the error of a file that cannot be read."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from emu3_megatron.errors import InputError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"})
_ESCAPED = re.compile(rb"\\(x[0-9a-f]{2})")
_LONGEST_REASON = 120  # characters
# Of the pixels that a file gives. What was computed of them is computed anew where it changes, so
# raise it with every change of decoding, colours or geometry.
READER_VERSION = 1


class UnreadableError(InputError):
    """A file that cannot be read as what it should be.

    The message names the file; a table that has a column of file names takes `reason` alone.
    """

    def __init__(self, path: str | Path, reason: str):
        super().__init__(path, reason)  # as arguments, so that it can be pickled
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def reason_of(error: Exception) -> str:
    """What a library's exception says, in one short line."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(said).split())[:_LONGEST_REASON]


def name_of(path: Path, folder: Path) -> str:
    """A file's path inside a folder as UTF-8, from which `path_of` makes the path again.

    A byte of it that is no UTF-8 is written as \\xHH, and so is the backslash of a name that holds
    such letters itself.
    """
    name = _ESCAPED.sub(rb"\\x5c\1", os.fsencode(path.relative_to(folder).as_posix()))
    return name.decode("utf-8", "backslashreplace")


def path_of(folder: Path, name: str) -> Path:
    """The file that `name_of` named."""
    raw = _ESCAPED.sub(lambda found: bytes.fromhex(found[1][1:].decode()), name.encode())
    return folder / os.fsdecode(raw)


def find_files(folder: str | Path, suffixes: Iterable[str]) -> list[Path]:
    """The files in a folder, and the folders in it, that end in one of `suffixes`, sorted.

    Raises:
        InputError: no such folder, or no such files in it.
    """
    folder, suffixes = Path(folder), sorted(suffixes)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    named = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    paths = sorted(path for path in named if path.is_file())
    if not paths:
        raise InputError(f"{folder}: no file ends in one of {', '.join(suffixes)}")
    return paths
