"""Reads the rows of .json, .jsonl and .parquet files one after another."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from emu3_megatron.errors import InputError
from emu3_megatron.media.files import reason_of, suffix_of
from emu3_megatron.prepare.streams import LINES_SUFFIXES, open_plain

SUFFIXES = LINES_SUFFIXES | {".json", ".parquet"}
COLUMNS = ("conversations", "messages", "image", "images", "video", "videos")
_CHARACTERS = 1 << 20  # of a file that are parsed at once
_ROWS = 64  # of Parquet that are read at once: they may hold images


class NotJson:
    """Stands for a line that is no JSON."""

    def __init__(self, reason: str):
        self.reason = reason


class Damaged:
    """Stands for the rows of a row group from one that cannot be read."""

    def __init__(self, reason: str):
        self.reason = reason


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Each row with its number, counted from 0.

    A list of rows is read a piece at a time, so that no file has to fit the memory. Of .jsonl the
    number is the line's, and a line that is no JSON comes as `NotJson`. A .json of lines is read as
    one. Of a damaged Parquet file the row groups that can be read are.

    Raises:
        InputError: the file cannot be read, or a list cannot be read further.
    """
    try:
        if suffix_of(path) == ".parquet":
            yield from read_parquet(path)
            return
        with _opened(path) as file:
            is_list = _first_character(file) == "["
        with _opened(path) as file:
            yield from (_list(path, file) if is_list else _lines(file))
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; is it a file of rows?") from None


def _opened(path: Path) -> TextIO:
    return io.TextIOWrapper(open_plain(path), "utf-8-sig")


def _first_character(file: TextIO) -> str:
    while piece := file.read(1 << 10):
        if text := piece.lstrip():
            return text[0]
    return ""


def _lines(file: TextIO) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file):
        if line.isspace():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, NotJson(reason_of(error))


def _list(path: Path, file: TextIO) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON list."""
    buffer = _Buffer(file)
    buffer.take("[")
    number = 0
    try:
        while not (number == 0 and buffer.take("]")):
            yield number, buffer.value()
            if buffer.take("]"):
                return
            if not buffer.take(","):
                raise ValueError("neither a comma nor ] behind it")
            number += 1
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: row {number}: not JSON ({reason_of(error)}); what follows cannot be read, "
            "repair the file"
        ) from None


class _Buffer:
    """JSON values out of a file of which a piece is in memory."""

    def __init__(self, file: TextIO):
        self._file = file
        self._decoder = json.JSONDecoder()
        self._text, self._place = "", 0

    def take(self, character: str) -> bool:
        """Pass over white space, and over this character if it is next."""
        self._skip_spaces()
        found = self._text[self._place : self._place + 1] == character
        self._place += found
        return found

    def _skip_spaces(self) -> None:
        while True:
            while self._place < len(self._text) and self._text[self._place].isspace():
                self._place += 1
            if self._place < len(self._text) or not self._more(_CHARACTERS):
                return

    def value(self) -> Any:
        """The next value. Raises ValueError when there is none."""
        self._skip_spaces()
        size = _CHARACTERS
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
            except ValueError:
                if not self._more(size):
                    raise
            else:
                # A number that ends with the text may go on.
                if end < len(self._text) or not self._more(size):
                    self._place = end
                    return value
            size *= 2

    def _more(self, size: int) -> bool:
        piece = self._file.read(size)
        self._text, self._place = self._text[self._place :] + piece, 0
        return bool(piece)


def read_parquet(
    path: Path, first: int = 0, end: int | None = None
) -> Iterator[tuple[int, dict[str, Any] | Damaged]]:
    """Rows of a Parquet file from `first` to before `end`, with their numbers.

    Of a row group that is damaged the first row that cannot be read comes as `Damaged`.

    Raises:
        InputError: the file cannot be read.
    """
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path.open("rb"))  # Arrow takes no name that is not UTF-8
    except Exception as error:  # pyarrow raises what the damage leads it to
        raise InputError(f"{path}: not a readable Parquet file ({reason_of(error)})") from None
    with file:
        begin = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if begin + rows > first and (end is None or begin < end):
                for number, row in _group(file, group, begin):
                    if number >= first and (end is None or number < end):
                        yield number, row
            begin += rows


def _group(file: Any, group: int, number: int) -> Iterator[tuple[int, dict[str, Any] | Damaged]]:
    """Rows of a row group, of which the first has this number."""
    columns = [name for name in COLUMNS if name in file.schema_arrow.names]
    end = number + file.metadata.row_group(group).num_rows
    try:
        for batch in file.iter_batches(_ROWS, row_groups=[group], columns=columns):
            for row in batch.to_pylist():
                yield number, row
                number += 1
    except Exception as error:  # pyarrow raises what the damage leads it to
        yield (
            number,
            Damaged(
                f"row group {group} is damaged ({reason_of(error)}); its {end - number:,} rows "
                "from here on are left out"
            ),
        )
