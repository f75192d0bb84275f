"""Reads files of lines, plain or compressed, from their beginning on."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from emu3_megatron.files import write_json
from emu3_megatron.media.files import COMPRESSED, File

LINES = (".jsonl", ".ndjson")
LINES_SUFFIXES = frozenset(kind + packed for kind in LINES for packed in ("", *COMPRESSED))
_BEGINNINGS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_BLOCK = 1 << 20


def compression_of(path: File) -> str | None:
    """How a file is compressed by its content, whatever its name; None when it is not.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(4)
    return next((kind for begins, kind in _BEGINNINGS.items() if start.startswith(begins)), None)


def open_plain(path: File) -> BinaryIO:
    """A file's content; of a compressed one what it was before, which can only be read forwards.

    Raises:
        OSError: it cannot be read; so does reading what is damaged.
    """
    kind = compression_of(path)
    if kind is None:
        return path.open("rb")
    import pyarrow as pa

    # A file, for Arrow takes no name that is not UTF-8.
    stream: Any = pa.input_stream(path.open("rb"), compression=kind)
    return cast(BinaryIO, io.BufferedReader(stream, _BLOCK))


class Stream:
    """The lines of a compressed file, which many ranges of it share as long as they follow."""

    def __init__(self) -> None:
        self._path: File | None = None
        self._file: BinaryIO | None = None
        self._offset = 0

    def lines(self, path: File, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Lines that begin in [start, end) with their offset; `start` is where one begins.

        Raises:
            OSError: the file is damaged, or cannot be read.
        """
        if path != self._path or self._file is None or self._offset > start:
            self._open(path)
        assert self._file is not None
        self._path = None  # until the range is read: a damaged stream is opened anew
        while self._offset < start and (skipped := self._file.read(self._block_to(start))):
            self._offset += len(skipped)
        while self._offset < end and (line := self._file.readline()):
            self._offset += len(line)
            if not line.isspace():
                yield self._offset - len(line), line
        self._path = path

    def _open(self, path: File) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._offset = open_plain(path), 0

    def _block_to(self, offset: int) -> int:
        return min(_BLOCK, offset - self._offset)


@dataclass(frozen=True)
class CutTask:
    """A compressed file, and the file to write of where to cut it; `size` in bytes."""

    out: Path
    path: File
    size: int


class WriteCuts:
    """Writes where ranges of about so many bytes begin and end, each with whole lines."""

    def __init__(self, range_bytes: int):
        self._range_bytes = range_bytes

    def __call__(self, task: CutTask) -> None:
        write_json(task.out, _cuts(task.path, self._range_bytes))


def _cuts(path: File, range_bytes: int) -> list[int]:
    cuts, offset = [0], 0
    try:
        with open_plain(path) as file:
            for line in file:
                if offset - cuts[-1] >= range_bytes:
                    cuts.append(offset)
                offset += len(line)
    except (OSError, ValueError):  # ValueError: as Arrow calls some damage
        offset += 1  # the last range comes to where reading fails, and says why
    return [*cuts, offset]


def read_cuts(path: Path) -> list[int]:
    cuts: list[int] = json.loads(path.read_text(encoding="utf-8"))
    return cuts
