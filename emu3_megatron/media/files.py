"""Finds images and videos in a folder, and the error of a file that cannot be read."""

import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar, overload

from emu3_megatron.errors import InputError

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif"),
        *(".tif", ".tiff", ".avif", ".jp2", ".j2k", ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".mpo"),
    }
)
VIDEO_SUFFIXES = frozenset(
    {
        *(".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".mts"),
        *(".m2ts", ".flv", ".wmv", ".asf", ".3gp", ".3g2", ".ogv"),
    }
)
COMPRESSED = (".gz", ".zst")
# How the files begin whose kind is looked for because they have no suffix.
_BEGINNINGS = {
    ".jpg": rb"\xff\xd8\xff",
    ".png": rb"\x89PNG\r\n\x1a\n",
    ".gif": rb"GIF8[79]a",
    ".webp": rb"RIFF....WEBP",
    ".bmp": rb"BM....\0\0\0\0",
    ".tif": rb"II\*\0|MM\0\*",
    ".jp2": rb"\0\0\0\x0cjP  ",
    ".avif": rb"....ftypavi[fs]",
    # Those whose brand says HEIF or audio are no videos.
    ".mp4": rb"....ftyp(?!avi|hei|hev|mif|msf|M4[ABP])",
    ".avi": rb"RIFF....AVI ",
    ".mkv": rb"\x1aE\xdf\xa3",
    ".flv": rb"FLV\x01",
    ".wmv": rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
    ".mpg": rb"\0\0\x01\xba",
}
_ESCAPED = re.compile(rb"\\(x[0-9a-f]{2})")
_LONGEST_REASON = 120  # characters
# Of the pixels that a file gives. What was computed of them is computed anew where it changes, so
# raise it with every change of decoding, colours or geometry.
READER_VERSION = 2


class StoredFile(Protocol):
    """A file that no folder of this machine holds; it is read as a path is."""

    @property
    def source(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def suffix(self) -> str: ...

    @property
    def stem(self) -> str: ...

    def with_suffix(self, suffix: str) -> "StoredFile": ...

    def open(self, mode: str = "rb") -> BinaryIO: ...

    def read_bytes(self) -> bytes: ...

    def read_text(self, encoding: str) -> str: ...

    def stat(self) -> Any: ...

    def copied(self) -> AbstractContextManager[Path]: ...


class StoredFolder(Protocol):
    """Where such files are found, as `search` and `path_of` find those of a folder."""

    def search(self, suffixes: Collection[str]) -> "Found[File]": ...

    def file(self, name: str) -> "File": ...

    def name_of(self, file: "File") -> str: ...

    def state(self, name: str) -> tuple[str, int, int | str]: ...


File = Path | StoredFile
Folder = Path | StoredFolder
F = TypeVar("F", Path, File)


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


def name_of(path: File, folder: Folder) -> str:
    """A file's path inside a folder as UTF-8, from which `path_of` makes the path again.

    A byte of it that is no UTF-8 is written as \\xHH, and so is the backslash of a name that holds
    such letters itself.
    """
    if not isinstance(folder, Path):
        return folder.name_of(path)
    assert isinstance(path, Path), "a folder of this machine holds its own files only"
    return escaped(os.fsencode(path.relative_to(folder).as_posix()))


def escaped(name: bytes) -> str:
    """A name as `name_of` writes it."""
    return _ESCAPED.sub(rb"\\x5c\1", name).decode("utf-8", "backslashreplace")


def unescaped(name: str) -> bytes:
    return _ESCAPED.sub(lambda found: bytes.fromhex(found[1][1:].decode()), name.encode())


@overload
def path_of(folder: Path, name: str) -> Path: ...


@overload
def path_of(folder: Folder, name: str) -> File: ...


def path_of(folder: Folder, name: str) -> File:
    """The file that `name_of` named."""
    if not isinstance(folder, Path):
        return folder.file(name)
    return folder / os.fsdecode(unescaped(name))


def spelling(name: str) -> str:
    """One for all spellings of a name: ./a.png is a.png, and letters with accents are composed."""
    return unicodedata.normalize("NFC", posixpath.normpath(name))


def file_named(folder: Path, name: str) -> Path:
    """The file in a folder that a user's table names, however it spells the name.

    Where there is none, the path that it would have.
    """
    paths = [folder / name]
    with suppress(ValueError):  # of a name that no file can have
        paths.append(path_of(folder, name))
        paths += [folder / unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
        return next((path for path in paths if path.exists()), paths[0])
    return paths[0]


def suffix_of(path: File) -> str:
    """A file's suffix in small letters; of one without a suffix that of its kind, by its content.

    What lies in no folder of this machine is not looked into.
    Of a compressed file it is both: `.jsonl.gz`. A file of no known kind has ''.
    """
    suffix = path.suffix.lower()
    if suffix in COMPRESSED:
        return Path(path.stem).suffix.lower() + suffix
    return suffix or (_suffix_by_content(path) if isinstance(path, Path) else "")


def _suffix_by_content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return ""
    kinds = (kind for kind, begins in _BEGINNINGS.items() if re.match(begins, start, re.DOTALL))
    return next(kinds, "")


@dataclass(frozen=True)
class Found(Generic[F]):
    """The files of a folder.

    Attributes:
        paths: of those that were looked for, sorted.
        others: that were not, by their suffix.
        unread: how often there was something that is neither file nor folder, by what it is.
    """

    paths: list[F] = field(default_factory=list)
    others: dict[str, list[F]] = field(default_factory=dict)
    unread: Counter[str] = field(default_factory=Counter)

    def left_out(self, known: Iterable[File] = ()) -> dict[str, int]:
        """How many files were not looked for, by suffix.

        Args:
            known: files that have another use, and so are not left out.
        """
        seen = set(map(_place, known))
        counts = Counter(self.unread)
        for suffix, paths in self.others.items():
            number = sum(_place(path) not in seen for path in paths)
            counts[suffix or "without a suffix"] = number
        return {what: counts[what] for what in sorted(counts) if counts[what]}


def _place(file: File) -> str:
    return os.path.abspath(file) if isinstance(file, Path) else file.source


@overload
def search(folder: str | Path, suffixes: Iterable[str]) -> Found[Path]: ...


@overload
def search(folder: str | Folder, suffixes: Iterable[str]) -> Found[Path] | Found[File]: ...


def search(folder: str | Folder, suffixes: Iterable[str]) -> Found[Path] | Found[File]:
    """The files in a folder, and in the folders in it, that end in one of `suffixes`.

    Links to folders are followed; each folder is read once, and by its own name where it has one
    inside `folder`.

    Raises:
        InputError: no such folder.
    """
    suffixes = set(suffixes)
    if not isinstance(folder, str | Path):
        return folder.search(suffixes)
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found = Found[Path]()
    for path in _files_in(folder, found.unread):
        if (suffix := suffix_of(path)) in suffixes:
            found.paths.append(path)
        else:
            found.others.setdefault(suffix, []).append(path)
    found.paths.sort()
    return found


def _files_in(top: Path, unread: Counter[str]) -> Iterator[Path]:
    waiting, linked = [top], list[Path]()
    seen: set[tuple[int, int]] = set()
    while waiting or linked:
        # Links last, in order: what they lead to may have a name of its own.
        folder = waiting.pop() if waiting else linked.pop(linked.index(min(linked)))
        state = folder.stat()
        if (state.st_dev, state.st_ino) in seen:
            continue
        seen.add((state.st_dev, state.st_ino))
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            unread[f"{folder.relative_to(top).as_posix()}/ ({reason_of(error)})"] += 1
            continue
        for entry in entries:
            path = folder / entry.name
            if _is(entry.is_dir):
                (linked if entry.is_symlink() else waiting).append(path)
            elif _is(entry.is_file):
                yield path
            else:
                unread["links to nothing" if entry.is_symlink() else "devices and pipes"] += 1


def _is(asked: Callable[[], bool]) -> bool:
    """What an entry of a folder says of itself; False where it leads nowhere."""
    with suppress(OSError):
        return asked()
    return False


@overload
def search_source(source: Path, suffixes: Iterable[str]) -> Found[Path]: ...


@overload
def search_source(source: Folder, suffixes: Iterable[str]) -> Found[Path] | Found[File]: ...


def search_source(source: Folder, suffixes: Iterable[str]) -> Found[Path] | Found[File]:
    """The files of a folder, or the one that is named.

    Raises:
        InputError: there is none.
    """
    if not isinstance(source, Path) or source.is_dir():
        found = search(source, suffixes)
        refuse_none(found, source, suffixes)
        return found
    if not source.is_file():
        raise InputError(f"{source}: no such file or folder")
    if suffix_of(source) not in suffixes:
        raise InputError(f"{source}: ends in none of {', '.join(sorted(suffixes))}")
    return Found([source])


def find_files(folder: str | Path, suffixes: Iterable[str]) -> list[Path]:
    """The files that `search` finds.

    Raises:
        InputError: no such folder, or no such files in it.
    """
    found = search(folder, suffixes)
    refuse_none(found, folder, suffixes)
    return found.paths


def refuse_none(found: Found[Any], folder: str | Folder, suffixes: Iterable[str]) -> None:
    """Raises InputError when none was found."""
    if not found.paths:
        other = line_of_left_out(found.left_out())
        raise InputError(
            f"{folder}: no file ends in one of {', '.join(sorted(suffixes))}"
            + (f"; there are {other}" if other else "")
        )


def line_of_left_out(left_out: Mapping[str, int], most: int = 12) -> str:
    """Counts by suffix, the largest first."""
    ranked = sorted(left_out.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = [f"{number:,} {what}" for what, number in ranked[:most]]
    if rest := sum(number for _, number in ranked[most:]):
        shown.append(f"{rest:,} others")
    return ", ".join(shown)
