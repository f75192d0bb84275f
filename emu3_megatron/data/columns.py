"""Stored columns: a number for each token of a source's rows, in a folder beside the packs.

For each source, known by the hash of its content, `HASH.values` holds the numbers of all its rows
in order, float32, little-endian, and `HASH.lengths` the tokens of each row, int32. `manifest.json`
has the size and hash of both, and says whose numbers they are.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emu3_megatron import manifest
from emu3_megatron.data.mapping import map_file
from emu3_megatron.data.source import Piece, Source
from emu3_megatron.errors import InputError
from emu3_megatron.files import write_json

FORMAT = "emu3-megatron/columns/1"
_VALUE, _LENGTH = np.dtype("<f4"), np.dtype("<i4")
_SAVE_SECONDS = 30.0  # between records of how far a writer is
_PROGRESS = "progress.json"


def read_columns(folder: Path) -> dict[str, Any]:
    """What the manifest of a folder of columns says.

    Raises:
        InputError: there is none, or it is damaged.
    """
    if not (folder / manifest.NAME).is_file():
        raise InputError(f"{folder}: no columns there; make them with emu3 reference RECIPE")
    about = manifest.read(folder)
    if about.get("format") != FORMAT:
        raise InputError(f"{folder / manifest.NAME}: not {FORMAT}; name a folder of columns")
    return about


class Column:
    """One folder of columns, opened. It can be forked."""

    def __init__(self, folder: Path):
        self.folder = folder
        about = read_columns(folder)
        self.sources: dict[str, Any] = about["sources"]
        self._files: dict[str, Any] = about["files"]
        self._arrays: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def check(self, source: Source) -> None:
        """See that the folder has a row for each row of a source.

        Raises:
            InputError: names both.
        """
        held = self.sources.get(source.content)
        if held is None or held["rows"] != len(source):
            raise InputError(
                f"{self.folder}: holds nothing of {source} as it is now ({source.content[:12]}…); "
                "run emu3 reference with this recipe"
            )
        self._open(source.content)

    def row(self, content: str, index: int) -> np.ndarray:
        """The values of a row of a source, float32 [tokens]."""
        values, ends = self._open(content)
        return values[ends[index] : ends[index + 1]]

    def _open(self, content: str) -> tuple[np.ndarray, np.ndarray]:
        if content not in self._arrays:
            lengths = self._map(content, "lengths", _LENGTH)
            ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            self._arrays[content] = self._map(content, "values", _VALUE), ends
        return self._arrays[content]

    def _map(self, content: str, kind: str, dtype: np.dtype) -> np.ndarray:
        path = self.folder / _file(content, kind)
        expected = self._files[path.name]["bytes"]
        if not path.is_file() or path.stat().st_size != expected:
            raise InputError(f"{path}: not {expected:,} bytes, as its manifest says; copy it again")
        return map_file(path, dtype)


class Columns:
    """The columns that an objective needs, for the rows of any source.

    Args:
        folders: by the column's name.

    Raises:
        InputError: one is missing or damaged.
    """

    def __init__(self, folders: Mapping[str, Path]):
        self._columns = {name: Column(folder) for name, folder in folders.items()}

    def check(self, sources: Sequence[Source]) -> None:
        """See that every column holds every source. Raises InputError."""
        for column in self._columns.values():
            for source in sources:
                column.check(source)

    def attach(self, source: Source, index: int, pieces: list[Piece]) -> list[Piece]:
        """The pieces of a row of a source with their columns."""
        if not self._columns:
            return pieces
        ends = np.cumsum([len(piece.tokens) for piece in pieces])
        parts = {
            name: np.split(self._row(column, source, index, int(ends[-1])), ends[:-1])
            for name, column in self._columns.items()
        }
        return [
            piece._replace(columns={name: split[i] for name, split in parts.items()})
            for i, piece in enumerate(pieces)
        ]

    @staticmethod
    def _row(column: Column, source: Source, index: int, tokens: int) -> np.ndarray:
        column.check(source)
        row = column.row(source.content, index)
        if len(row) != tokens:
            raise InputError(
                f"{column.folder}: row {index} of {source} has {len(row):,} values for "
                f"{tokens:,} tokens; run emu3 reference with this recipe"
            )
        return row


class ColumnWriter:
    """Writes a folder of columns, row by row; one that is interrupted goes on at its next start.

    Until `commit` all lies beside the folder, in `.NAME.part`: nothing under its name is half
    written. Sources that the folder holds already stay in it.

    Args:
        about: whose numbers they are; JSON. What was begun for others is begun anew.
    """

    def __init__(self, folder: Path, about: dict[str, Any]):
        self.folder, self.about = folder, {"format": FORMAT, **about}
        self.beside = folder.with_name(f".{folder.name}.part")
        self._lock()
        # Name and rows on the disk of each source, by its content.
        self._begun: dict[str, dict[str, Any]] = self._progress().get("sources", {})
        self._kept: set[str] = set()
        if (folder / manifest.NAME).is_file():
            self._take_over(read_columns(folder))

    def _lock(self) -> None:
        """Two that write would mix their rows."""
        self.beside.mkdir(parents=True, exist_ok=True)
        self._locked = (self.beside / "lock").open("w", encoding="utf-8")
        try:
            fcntl.flock(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{self.folder}: another process writes it now; wait for it") from None

    def _progress(self) -> dict[str, Any]:
        """How far the columns that are written now got; nothing of others."""
        try:
            found = json.loads((self.beside / _PROGRESS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if found["about"] == self.about else {}

    def _take_over(self, before: dict[str, Any]) -> None:
        assert same_columns(before, self.about), "a folder of other columns"
        self._begun |= before["sources"]
        self._kept = set(before["sources"])
        for name in before["files"]:
            shutil.copy2(self.folder / name, self.beside / name)

    def begin(self, source: Source) -> int:
        """Go on with a source; returns how many of its rows are written already."""
        self._source = self._begun.setdefault(source.content, {"name": str(source), "rows": 0})
        self._kept.add(source.content)
        rows = self._source["rows"]
        lengths, values = (self.beside / _file(source.content, k) for k in ("lengths", "values"))
        self._lengths, self._values = lengths.open("ab"), values.open("ab")
        self._lengths.truncate(rows * _LENGTH.itemsize)
        tokens = int(np.fromfile(lengths, _LENGTH).sum(dtype=np.int64))
        self._values.truncate(tokens * _VALUE.itemsize)
        self._written, self._saved_at = rows, time.monotonic()
        return rows

    def append(self, values: np.ndarray) -> None:
        """The next row, float32 [tokens]."""
        self._values.write(values.astype(_VALUE).tobytes())
        self._lengths.write(np.array(len(values), _LENGTH).tobytes())
        self._written += 1
        if time.monotonic() - self._saved_at > _SAVE_SECONDS:
            self._save()

    def end(self) -> None:
        """The source's last row was given."""
        self._save()
        self._values.close()
        self._lengths.close()

    def _save(self) -> None:
        for file in (self._values, self._lengths):
            file.flush()
            os.fsync(file.fileno())
        self._source["rows"] = self._written
        write_json(self.beside / _PROGRESS, {"about": self.about, "sources": self._begun})
        self._saved_at = time.monotonic()

    def commit(self) -> None:
        """Give the folder its manifest and its name."""
        sources = {content: self._begun[content] for content in sorted(self._kept)}
        files = {_file(content, kind) for content in sources for kind in ("lengths", "values")}
        for path in self.beside.iterdir():
            if path.name not in files:
                path.unlink()
        manifest.commit(self.beside, self.folder, {**self.about, "sources": sources}, known={})


def same_columns(before: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
    """Whether a manifest says of its columns what `about` says, whatever sources it holds."""
    return all(before.get(key) == value for key, value in about.items())


def _file(content: str, kind: str) -> str:
    return f"{content[:16]}.{kind}"
