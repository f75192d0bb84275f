"""Reads texts from ranges of files: lines of .jsonl, values of .parquet, whole .txt."""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from emu3_megatron.config.prepare import TextConfig
from emu3_megatron.errors import InputError
from emu3_megatron.media.files import (
    File,
    Folder,
    Found,
    UnreadableError,
    path_of,
    reason_of,
    search_source,
    suffix_of,
)
from emu3_megatron.prepare.items import RunFault
from emu3_megatron.prepare.streams import (
    LINES_SUFFIXES,
    Stream,
    compression_of,
    open_plain,
)
from emu3_megatron.prepare.workspace import folder_of
from emu3_megatron.vocabulary import nfc

TEXT_SUFFIXES = LINES_SUFFIXES | {".parquet", ".txt"}

_BOM = "\ufeff"  # that some editors write before a text
_LOOKED_AT = 100  # lines of a file

Decode = Callable[[Any], str]
"""Raises UnicodeError or InputError when there is no text."""


@dataclass(frozen=True)
class Range:
    """A stretch of a file: bytes, or row groups of Parquet; none where they hold no texts."""

    source: str
    start: int
    end: int

    @property
    def name(self) -> str:
        """Of what cannot be read of it; a file's own where it is read from its beginning."""
        if self.start == self.end:
            return self.source
        if self.source.lower().endswith(".parquet"):
            return f"{self.source}: row group {self.start}"
        return f"{self.source}: byte {self.start} and on" if self.start else self.source


def text_of(decode: Decode, data: Any, min_characters: int) -> tuple[str, bytes]:
    """A text in NFC, and its UTF-8. Raises InputError when there is none, or too little."""
    try:
        text = nfc(decode(data).removeprefix(_BOM))
        utf8 = text.encode()  # a lone surrogate, which JSON can spell, is no text
    except UnicodeError:
        raise InputError("not UTF-8 text") from None
    if len(text.strip()) < min_characters:
        raise InputError(f"{len(text.strip())} characters, too short")
    return text, utf8


def read_texts(
    config: TextConfig, part: Range, stream: Stream
) -> Iterator[tuple[str, Decode, Any]]:
    """Where each text of a range stands, and what makes a text of what stands there.

    A text is a line of .jsonl, a value of .parquet, or a whole .txt.

    Args:
        stream: by which a compressed file is read, one range after another.
    """
    folder = folder_of(config)
    path: File
    if isinstance(folder, Path) and not folder.is_dir():
        path = folder
    else:
        path = path_of(folder, part.source)
    suffix = suffix_of(path)
    if suffix == ".parquet":
        for where, value in _row_groups(path, config.column, part):
            yield where, partial(_checked, config.column), value
    elif suffix in LINES_SUFFIXES:
        decode = partial(_json_field, config.column)
        for offset, line in _lines(path, part, stream):
            yield f"{part.source}:byte {offset}", decode, line
    else:
        yield part.source, bytes.decode, path.read_bytes()


def _lines(path: File, part: Range, stream: Stream) -> Iterator[tuple[int, bytes]]:
    if compression_of(path):
        yield from stream.lines(path, part.start, part.end)
        return
    with path.open("rb") as file:
        yield from lines_between(file, part.start, part.end)


def _json_field(column: str, line: bytes) -> str:
    text = line.decode().removeprefix(_BOM)
    try:
        return _checked(column, json.loads(text)[column])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"not JSON with a text in {column!r}") from None


def _checked(column: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"no text in {column!r}")
    return value


def lines_between(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Lines that begin in [start, end) of a file, with their offset; empty ones are left out."""
    offset = start
    if start:
        file.seek(start - 1)
        offset += len(file.readline()) - 1  # the rest of a line that began before, or its end
    while offset < end and (line := file.readline()):
        if not line.isspace():
            yield offset, line
        offset += len(line)


def _row_groups(path: File, column: str, part: Range) -> Iterator[tuple[str, str]]:
    file = open_parquet(path)
    if column not in file.schema_arrow.names:
        names = ", ".join(file.schema_arrow.names)
        raise UnreadableError(str(path), f"no column {column!r}; it has {names}")
    for group in range(part.start, part.end):
        try:
            values = file.read_row_group(group, columns=[column]).column(column).to_pylist()
        except RunFault:
            raise
        except Exception as error:  # pyarrow raises what the damage leads it to
            rows = file.metadata.row_group(group).num_rows
            raise UnreadableError(
                str(path), f"damaged ({reason_of(error)}); its {rows:,} texts are left out"
            ) from None
        for row, value in enumerate(values):
            yield f"{part.source}: row group {group}, row {row}", value


def open_parquet(path: File) -> Any:
    """A `pyarrow.parquet.ParquetFile`. Raises UnreadableError."""
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path.open("rb"))  # Arrow takes no name that is not UTF-8
    except RunFault:
        raise
    except Exception as error:  # pyarrow raises what the damage leads it to
        reason = f"not a readable Parquet file ({reason_of(error)})"
        raise UnreadableError(str(path), reason) from None


def refuse_missing_column(config: TextConfig) -> None:
    """Raises InputError when no file of Parquet, and no .jsonl in its first lines, has the column.

    Where some have it, the others are set aside as they are read.
    """
    lacking: dict[File, set[str]] = {}
    for path in search_texts(folder_of(config)).paths:
        found: set[str] = set()
        if suffix_of(path) == ".parquet":
            with contextlib.suppress(Exception):  # is told where it is read
                found = set(open_parquet(path).schema_arrow.names)
        elif suffix_of(path) in LINES_SUFFIXES:
            found = _columns_of_lines(path)
        if config.column in found:
            return
        if found:
            lacking[path] = found
    for path, found in lacking.items():
        raise InputError(
            f"{path}: no column {config.column!r}; it has {', '.join(sorted(found))}: name "
            "yours in text.column"
        )


def _columns_of_lines(path: File) -> set[str]:
    """Of the first lines; none where one of them has other faults."""
    found: set[str] = set()
    try:
        with open_plain(path) as file:
            for line in itertools.islice(file, _LOOKED_AT):
                if not line.isspace():
                    found |= json.loads(line.decode().removeprefix(_BOM)).keys()
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return set()
    return found


def search_texts(source: Folder) -> Found[Any]:
    """The files of texts: all of a folder, or the one that is named."""
    return search_source(source, TEXT_SUFFIXES)
